"""The vision tower runs once for each picture; after that, the model takes its output from files."""

import copy
import dataclasses
import errno
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from safetensors import SafetensorError
from safetensors.torch import load_file

from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.artifacts.probabilities import SECOND_LOOK
from vqa_utils.errors import RunError
from vqa_utils.model import cache_folders, loading
from vqa_utils.model.adapter import add_lora, load_adapter
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.features import encoding, store
from vqa_utils.model.features.encoding import Pictures, pictures_of, prepare_tower, run_tower
from vqa_utils.model.features.stand_in import store_of
from vqa_utils.model.lending import attach, lender
from vqa_utils.model.loading import (
    LoadError,
    base_key,
    compute_dtype,
    feature_store,
    load_base,
    with_features,
)
from vqa_utils.model.loading_check import loaded_weights
from vqa_utils.planning.machine.disk import DiskFull
from vqa_utils.planning.shapes import VISION
from vqa_utils.scoring.fold import score_fold
from vqa_utils.scoring.options import ScoringSettings, score_options
from vqa_utils.sharing.lent import LentBase
from vqa_utils.training.fold import train_fold


@pytest.fixture
def cached(config, tmp_path):
    return dataclasses.replace(config, cache_features=True, cache_dir=str(tmp_path / "kept"))


@pytest.fixture
def pictures(challenge):
    return pictures_of(challenge.folder, [challenge.train, challenge.test], grey=challenge.train)


@pytest.fixture
def encoded(monkeypatch):
    """The pictures that the tower saw, one by one."""
    seen = []
    run = encoding.run_tower
    monkeypatch.setattr(encoding, "run_tower", lambda *args: seen.append(args[1]) or run(*args))
    return seen


@pytest.mark.parametrize("crops", [0, 2])
def test_a_base_with_features_answers_as_the_one_with_a_tower(
    cached, base, encoder, challenge, pictures, crops
):
    cached = dataclasses.replace(cached, crops=crops)
    encoder = encoder.closer(cached.image_side, crops)
    found = load_base(cached, None, pictures)
    assert not any("visual" in name for name, _ in found.named_parameters())
    assert "vision" not in set(loaded_weights(found, cached)["weights"])
    of_store = encoder.for_model(found)
    rows = challenge.train.to_dict("records")
    for own, other in ((encoder, of_store), (encoder.blanked(), of_store.blanked())):
        with torch.inference_mode():
            wanted = base(**own.questions(rows), logits_to_keep=1).logits
            logits = found(**other.questions(rows), logits_to_keep=1).logits
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)
    grey, shown = (
        batch.questions(rows)["pixel_values"] for batch in (of_store.blanked(), of_store)
    )
    assert not torch.equal(grey, shown)


def test_a_tower_of_its_own_has_no_hooks(base, encoder, challenge):
    """accelerate puts one on each module of a model on several GPUs: 99 calls for a picture."""
    tower = copy.deepcopy(base.get_submodule(VISION))
    (path,) = challenge.train["path"].head(1)
    pixels = encoder.pixels([path])
    wanted = run_tower(tower, pixels, torch.float32)
    for module in tower.modules():
        add_hook_to_module(module, ModelHook())
    prepare_tower(tower, torch.float32)
    assert not any(hasattr(module, "_hf_hook") for module in tower.modules())
    found = run_tower(tower, pixels, torch.float32)
    torch.testing.assert_close(found.tokens, wanted.tokens)


def test_a_batch_is_that_of_the_processor_but_for_the_pictures(
    cached, encoder, challenge, pictures
):
    of_store = encoder.for_model(load_base(cached, None, pictures))
    rows = challenge.train.to_dict("records")
    rows[1]["question"] = "<|image_pad|> " + rows[1]["question"]  # words, no picture
    ours, other = (dict(made.examples(rows)) for made in (encoder, of_store))
    pixels, tokens = ours.pop("pixel_values"), other.pop("pixel_values")
    assert pixels.shape[0] == 4 * tokens.shape[0] and tokens.ndim == 3
    assert ours.keys() == other.keys()
    for name, value in ours.items():
        assert torch.equal(torch.as_tensor(other[name]), torch.as_tensor(value)), name


def test_the_tower_sees_each_picture_once(cached, challenge, pictures, encoded):
    first = Pictures(pictures.folder, pictures.paths[:3], [])
    load_base(cached, None, first)
    assert len(encoded) == 3
    load_base(cached, None, pictures)
    colours = len(pictures.paths)
    greys = len(encoded) - colours
    assert 0 < greys <= len(pictures.grey), "one for each size"
    load_base(cached, None, pictures)
    assert len(encoded) == colours + greys
    assert all(len(pixels["image_grid_thw"]) == 1 for pixels in encoded), "it is alone"


def test_features_do_not_depend_on_the_pictures_beside(cached, encoder, pictures, tmp_path):
    stores = []
    for name, paths in (("all", pictures.paths), ("last", pictures.paths[-1:])):
        settings = dataclasses.replace(cached, cache_dir=str(tmp_path / name))
        stores.append(store_of(load_base(settings, None, Pictures(pictures.folder, paths, []))))
    last = pictures.folder / pictures.paths[-1]
    found, wanted = (store.read(last, encoder.view) for store in stores)
    assert torch.equal(found.tokens, wanted.tokens) and torch.equal(found.grids, wanted.grids)


@pytest.mark.parametrize("looks", [{"second_look_side": 96}, {"second_look_crops": 2}])
def test_a_second_look_finds_features_of_its_own(
    cached, base, encoder, challenge, pictures, tmp_path, looks
):
    """The tower has gone by then."""
    settings = {"second_look": 0.3, "tta": 1, "baselines": False, **looks}
    cached = dataclasses.replace(cached, **settings)
    questions = {"oof": challenge.train.head(6).drop(columns="answer")}
    found, wanted = (
        score_fold(model, encoder, questions, cached, paths, paths)
        for model, paths in (
            (load_base(cached, None, pictures), FoldPaths(tmp_path / "stored")),
            (base, FoldPaths(tmp_path / "tower")),
        )
    )
    assert list(found) == ["oof", f"oof_{SECOND_LOOK}"]
    for name, frame in wanted.items():
        pd.testing.assert_frame_equal(found[name], frame, atol=1e-4)


@pytest.mark.parametrize("change", ["other bytes", "deleted"])
def test_a_picture_without_features_is_named(cached, processor, challenge, tmp_path, change):
    folder = shutil.copytree(challenge.folder, tmp_path / "pictures")
    path = challenge.train["path"][0]
    model = load_base(cached, None, pictures_of(folder, [challenge.train]))
    encoder = Encoder(processor, folder, cached.image_side).for_model(model)
    rows = challenge.train.head(1).to_dict("records")
    encoder.questions(rows)
    if change == "deleted":
        shutil.rmtree(store_of(model).folder)
    else:
        with (folder / path).open("ab") as file:
            file.write(b"more")
    with pytest.raises(RunError, match=rf"(?s){path}: expected its features.*--resume"):
        encoder.questions(rows)


def test_what_features_depend_on_has_a_folder_of_its_own(cached, pictures, monkeypatch):
    def folder(config=cached, dtype=torch.float32):
        return feature_store(config, dtype, pictures).folder

    usual = folder()
    others = [
        folder(dataclasses.replace(cached, image_side=96)),
        folder(dataclasses.replace(cached, crops=2)),
        folder(dtype=torch.float16),
    ]
    monkeypatch.setattr(loading, "FEATURES_FORMAT", 0)
    others.append(folder())
    monkeypatch.undo()
    monkeypatch.setattr(cache_folders.importlib.metadata, "version", lambda name: "0")
    others.append(folder())
    assert len({usual, *others}) == 6
    assert feature_store(dataclasses.replace(cached, cache_features=False), None, pictures) is None
    assert feature_store(dataclasses.replace(cached, cache_features="auto"), None, pictures) is None


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), SafetensorError("os error 28")])
def test_a_full_disk_is_named_with_what_needs_none(cached, pictures, monkeypatch, error):
    def fails(*args):
        raise error

    monkeypatch.setattr(store, "save_file", fails)
    with pytest.raises(DiskFull, match=r"the disk of .*kept.* is full.*cache_features=false"):
        load_base(cached, None, pictures)
    kept = feature_store(cached, torch.float32, pictures).folder
    assert list(kept.iterdir()) == [], "nothing half-written"


def test_without_a_place_for_features_the_settings_are_named(cached, pictures):
    with pytest.raises(LoadError, match=r"cache_features: expected a disk.*cache_features=false"):
        load_base(dataclasses.replace(cached, cache_dir=""), None, pictures)


def test_an_encoder_of_a_store_goes_to_other_processes(cached, encoder, challenge, pictures):
    of_store = encoder.for_model(load_base(cached, None, pictures))
    rows = challenge.train.head(2).to_dict("records")
    sent = pickle.loads(pickle.dumps(of_store))
    assert torch.equal(
        sent.questions(rows)["pixel_values"], of_store.questions(rows)["pixel_values"]
    )


@pytest.fixture
def trained(cached, encoder, challenge, pictures, tmp_path):
    """A fold of a base that was loaded by this process: its adapter's and its answers' files."""
    return fold_of(cached, encoder, challenge, pictures, FoldPaths(tmp_path / "own"))


def fold_of(config, encoder, challenge, pictures, paths):
    rows = challenge.train
    model = add_lora(load_base(config, None, pictures), config, None)
    train_fold(model, config, encoder, rows.head(8), rows.tail(4), paths)
    model, _, config = load_adapter(paths.adapter, config, None, pictures)
    questions = {"oof": rows.tail(4).drop(columns="answer"), "test": challenge.test}
    score_fold(model, encoder, questions, config, paths, paths)
    weights = load_file(paths.adapter / "adapter_model.safetensors")
    names = ("oof", "test", "zero_shot", "blank")
    return weights, {name: paths.probs(name).read_bytes() for name in names}


def test_a_fold_without_a_tower_learns_what_others_learn(
    config, encoder, challenge, pictures, trained, tmp_path
):
    weights, answers = trained
    paths = FoldPaths(tmp_path / "with a tower")
    wanted, _ = fold_of(config, encoder, challenge, pictures, paths)
    moved = [name for name, weight in wanted.items() if "lora_B" in name and weight.any()]
    assert moved
    for name, weight in wanted.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-3)
    for name in answers:
        own, other = (
            pd.read_csv(folder / f"probs_{name}.csv").iloc[:, 1:].to_numpy()
            for folder in (paths.folder, tmp_path / "own")
        )
        np.testing.assert_allclose(other, own, atol=1e-3)


@pytest.fixture
def lent(cached, pictures, monkeypatch):
    """Lends the base without its tower, and lists the bases that are loaded all the same."""
    dtype = compute_dtype(cached)
    key = base_key(cached, dtype, feature_store(cached, dtype, pictures))
    base, memories = lender.lend(
        with_features(loading.load_packed(cached, None), cached, pictures), key
    )
    assert not any("visual" in name for name in base.tensors)
    description = LentBase.from_json(base.to_json())
    files = [memory.export() for memory in memories]
    monkeypatch.setattr(
        attach, "lent_base", lambda asked: (description, files) if asked == key else None
    )
    monkeypatch.setattr(attach, "_mapped", [])
    attach._mapped_base.cache_clear()
    loads = []
    load_packed = loading.load_packed
    monkeypatch.setattr(
        loading, "load_packed", lambda *args: loads.append(args) or load_packed(*args)
    )
    yield loads
    attach._mapped_base.cache_clear()


def test_a_base_is_lent_without_its_tower_and_gives_the_same_bits(
    cached, encoder, challenge, pictures, trained, lent, tmp_path
):
    paths = FoldPaths(tmp_path / "lent")
    weights, answers = fold_of(cached, encoder, challenge, pictures, paths)
    assert lent == []
    assert answers == trained[1]
    assert all(torch.equal(weights[name], weight) for name, weight in trained[0].items())


def test_a_fold_that_shows_pictures_of_another_size_loads_a_tower(cached, pictures, lent, encoded):
    load_base(dataclasses.replace(cached, image_side=96), None, pictures)
    assert len(lent) == 1 and len(encoded) > len(pictures.paths)


def test_the_lender_encodes_all_that_the_folds_show(
    cached, challenge, korean_folder, monkeypatch, tmp_path
):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    paths = RunPaths("lent")
    of_run = lender.pictures_of_run(paths, dataclasses.replace(cached, baselines=True), "")
    assert of_run.folder == challenge.folder
    assert set(of_run.paths) == {*challenge.train["path"], *challenge.test["path"]}
    assert set(of_run.grey) == set(challenge.train["path"])
    assert (
        lender.pictures_of_run(paths, dataclasses.replace(cached, baselines=False), "").grey == []
    )
    other = lender.pictures_of_run(paths, cached, str(korean_folder))
    assert set(other.paths) == set(challenge.test["path"]) and other.grey == []


def test_scores_come_of_a_store_in_other_processes_too(cached, encoder, challenge, pictures):
    model = load_base(cached, None, pictures).eval()
    own, other = (
        score_options(model, encoder, challenge.test, ScoringSettings(4, num_workers=workers))
        for workers in (0, 2)
    )
    pd.testing.assert_frame_equal(own, other, check_exact=True)

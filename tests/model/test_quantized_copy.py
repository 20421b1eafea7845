"""The quantised copy on a disk: loaded again it is the same model, and one that cannot be trusted is made anew."""

import dataclasses
import os
import shutil
import warnings
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from bases import base_of

from vqa_utils.artifacts.manifest import MANIFEST
from vqa_utils.artifacts.paths import DEMO_MODEL
from vqa_utils.model import cache_folders as cache
from vqa_utils.model import loading as model
from vqa_utils.model._quantized_copy import cache_key, copy_folder, is_whole, new_copy
from vqa_utils.presets import preset

pytestmark = pytest.mark.slow


@pytest.fixture
def own_base(config, tmp_path):
    """Settings with a base of their own and a folder for copies."""
    shutil.copytree(DEMO_MODEL, tmp_path / "base")
    return dataclasses.replace(
        config, model=str(tmp_path / "base"), cache_dir=str(tmp_path / "kept")
    )


def copies(config):
    return sorted(Path(config.cache_dir).glob("*"))


def logits(base, encoder, challenge):
    with torch.no_grad():
        return base(**encoder.questions(challenge.test.head(2).to_dict("records"))).logits


def reads(monkeypatch):
    """The folders that weights are read from."""
    seen, real = [], model.AutoModelForImageTextToText.from_pretrained
    monkeypatch.setattr(
        model.AutoModelForImageTextToText,
        "from_pretrained",
        lambda path, **k: seen.append(str(path)) or real(path, **k),
    )
    return seen


@pytest.mark.parametrize("double_quant", [True, False])
def test_the_copy_is_the_same_model_bit_by_bit(
    own_base, encoder, challenge, monkeypatch, double_quant
):
    own_base = dataclasses.replace(own_base, use_double_quant=double_quant)
    seen = reads(monkeypatch)
    first, again = base_of(own_base), base_of(own_base)
    assert seen[0] == own_base.model and seen[1] == str(copies(own_base)[0])
    assert torch.equal(logits(first, encoder, challenge), logits(again, encoder, challenge))
    assert again.name_or_path == own_base.model  # what the adapter names as its base


def test_a_copys_name_changes_with_all_that_it_depends_on(own_base, tmp_path):
    source = tmp_path / "base"
    keys = {cache_key(own_base, source, "torch.float16")}
    keys.add(
        cache_key(dataclasses.replace(own_base, use_double_quant=False), source, "torch.float16")
    )
    keys.add(cache_key(own_base, source, "torch.float32"))
    assert (
        cache_key(dataclasses.replace(own_base, lora_r=3, seed=7), source, "torch.float16") in keys
    )
    os.utime(source / "model.safetensors", (1, 1))
    keys.add(cache_key(own_base, source, "torch.float16"))
    (source / "config.json").write_text(
        (source / "config.json").read_text().replace("5.17", "5.18")
    )
    keys.add(cache_key(own_base, source, "torch.float16"))
    assert len(keys) == 5


def test_another_library_version_is_another_copy(own_base, tmp_path, monkeypatch):
    before = cache_key(own_base, tmp_path / "base", "torch.float16")
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "0.1")
    assert cache_key(own_base, tmp_path / "base", "torch.float16") != before


@pytest.mark.parametrize("damage", ["no manifest", "cut off", "a hole", "a file is gone"])
def test_a_torn_copy_is_made_anew(own_base, encoder, challenge, monkeypatch, damage):
    expected = logits(base_of(own_base), encoder, challenge)
    (copy,) = copies(own_base)
    weights = copy / "model.safetensors"
    if damage == "no manifest":
        (copy / MANIFEST).unlink()
    elif damage == "a file is gone":
        weights.unlink()
    else:
        size = weights.stat().st_size
        os.truncate(weights, size - 1000)
        if damage == "a hole":
            os.truncate(weights, size)
    seen = reads(monkeypatch)
    assert torch.equal(logits(base_of(own_base), encoder, challenge), expected)
    assert seen == [own_base.model]
    base_of(own_base)
    assert seen[1:] == [str(copies(own_base)[0])] and len(copies(own_base)) == 1


def test_a_copy_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="full"), new_copy(tmp_path / "kept" / "x") as draft:
        (draft / "part").write_bytes(b"1")
        raise OSError("full")
    assert list((tmp_path / "kept").iterdir()) == []
    assert not is_whole(tmp_path / "kept" / "x")


def test_a_full_disk_costs_the_copy_alone(own_base, monkeypatch):
    monkeypatch.setattr(
        "transformers.PreTrainedModel.save_pretrained",
        lambda *a, **k: (_ for _ in ()).throw(OSError("no space")),
    )
    with pytest.warns(UserWarning, match="no space"):
        base_of(own_base)
    assert copies(own_base) == []


def test_no_folder_no_copy(own_base):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        base_of(dataclasses.replace(own_base, cache_dir=""))
    assert copies(own_base) == []


def test_copies_go_to_the_first_disk_with_room(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    working, temporary, home = (tmp_path / name for name in ("working", "tmp", "home"))
    for folder in (working, temporary, home / ".cache"):
        folder.mkdir(parents=True)
    disks = {working: 1, temporary: 2, home / ".cache": 3}
    monkeypatch.setattr(cache, "_disk", lambda path: disks.get(path))
    monkeypatch.setattr(cache, "TEMPORARY", (temporary,))
    monkeypatch.setattr(cache, "KAGGLE_WORKING", tmp_path / "no kaggle")
    monkeypatch.setattr(cache.Path, "home", lambda: home)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage(0, 0, 20e9))
    safe = preset("safe")
    assert copy_folder(safe, "x", 17e9) == home / ".cache" / "vqa_nf4" / "x"
    assert copy_folder(safe, "x", 19e9) is None  # no room
    assert copy_folder(safe, "x", 9e8) is None  # not worth it
    assert copy_folder(dataclasses.replace(safe, cache_dir=""), "x", 17e9) is None
    assert (
        copy_folder(dataclasses.replace(safe, cache_dir=str(working)), "x", 19e9) == working / "x"
    )  # asked for
    monkeypatch.setattr(cache, "KAGGLE_WORKING", working)
    assert copy_folder(safe, "x", 17e9) == temporary / "vqa_nf4" / "x"
    with new_copy(temporary / "vqa_nf4" / "x") as draft:
        (draft / "weights").write_bytes(b"1")
    monkeypatch.setattr(
        cache.shutil, "disk_usage", lambda path: usage(0, 0, 3e9)
    )  # what the copy left free
    assert (
        copy_folder(safe, "x", 17e9) == temporary / "vqa_nf4" / "x"
        and copy_folder(safe, "y", 17e9) is None
    )
    disks[temporary] = 1  # the same disk as the working folder
    assert copy_folder(safe, "x", 17e9) is None


def test_tests_leave_nothing_in_the_users_cache(config):
    assert model._kept_copy(config, "torch.float32") is None

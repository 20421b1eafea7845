"""A base that is packed without a GPU is the one that a run packs for itself."""

import dataclasses
import shutil

import pytest
import torch
from transformers import AutoModelForImageTextToText

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.manifest import MANIFEST
from vqa_utils.artifacts.paths import DEMO_MODEL
from vqa_utils.data.challenge import DataError
from vqa_utils.errors import RunError
from vqa_utils.exporting.inputs import Place, find_model
from vqa_utils.model import encoder
from vqa_utils.model._quantized_copy import is_whole
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.loading import load_packed, load_processor
from vqa_utils.model.nf4.experts import PROJECTIONS, NF4Experts
from vqa_utils.model.preparing import prepare_base
from vqa_utils.planning.machine.check import check_run
from vqa_utils.planning.machine.gpus import T4, MachineError
from vqa_utils.planning.source.check import check_source, is_packed
from vqa_utils.prompts import Prompt

pytestmark = pytest.mark.slow


@pytest.fixture
def own(config, tmp_path):
    """The demo's settings, and a folder for its packed base."""
    return config, tmp_path / "packed" / "base"


@pytest.mark.parametrize("use_amp", [True, False])
def test_it_is_bitwise_what_a_run_packs(own, use_amp):
    config, folder = own
    config = dataclasses.replace(config, use_amp=use_amp)
    dtype = torch.float16 if use_amp else torch.float32
    prepare_base(config, folder)
    assert is_packed(str(folder)) and (folder / MANIFEST).is_file()
    check_source(str(folder))
    assert [file.name for file in folder.parent.iterdir()] == ["base"], "no files of its own stay"
    published = read_json(DEMO_MODEL / "config.json")
    attached = Place("Kaggle", (folder.parent,), folder.parent)
    assert find_model(attached, published) == folder, "a launcher takes it for the model"

    # As a GPU would load it; on a CPU the settings would ask for fp32
    packed = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, device_map="cpu")
    expected = load_packed(config, None, dtype=dtype).state_dict()
    found = packed.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name


def test_pictures_are_prepared_as_they_are_shown(own, challenge, monkeypatch):
    config, folder = own
    paths = list(dict.fromkeys([*challenge.train["path"], *challenge.test["path"]]))
    source = Encoder(load_processor(config), challenge.folder, config.image_side)
    wanted = source.pixels(paths)
    assert prepare_base(dataclasses.replace(config, data=str(challenge.folder)), folder) == len(
        paths
    )
    assert is_whole(folder), "its manifest has the pictures too"

    attached = folder.parent.rename(folder.parent.with_name("input")) / "base"
    (copy,) = (attached / "pictures").iterdir()
    processor = load_processor(dataclasses.replace(config, model=str(attached)))

    def shown(side=config.image_side):
        return Encoder(processor, challenge.folder, side)

    read = []
    real = encoder.open_picture
    monkeypatch.setattr(
        encoder, "open_picture", lambda path, side: read.append(path) or real(path, side)
    )
    for name, tensor in shown().pixels(paths).items():
        assert torch.equal(tensor, wanted[name])
    assert not read, "nothing is decoded anew"
    grey = shown().blanked().pixels(paths[:1])
    assert torch.equal(grey["image_grid_thw"], wanted["image_grid_thw"][:1]) and not read

    shown(config.image_side // 2).pixels(paths[:1])
    assert len(read) == 1, "not prepared in this size"
    for file in copy.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(
        shown().pixels(paths[:1])["pixel_values"], source.pixels(paths[:1])["pixel_values"]
    )
    assert len(read) == 3, "torn"


def test_crops_are_prepared_with_their_pictures(own, challenge, monkeypatch):
    config, folder = own
    paths = list(challenge.train["path"].unique()[:3])
    shown = [
        Encoder(load_processor(config), challenge.folder, config.image_side, Prompt(crops=crops))
        for crops in (0, 2)
    ]
    wanted = [one.pixels(paths)["pixel_values"] for one in shown]
    prepare_base(dataclasses.replace(config, data=str(challenge.folder), crops=2), folder)
    processor = load_processor(dataclasses.replace(config, model=str(folder)))

    def found(crops):
        return Encoder(processor, challenge.folder, config.image_side, Prompt(crops=crops))

    decoded = []
    real = encoder.open_picture
    monkeypatch.setattr(
        encoder, "open_picture", lambda path, side: decoded.append(path) or real(path, side)
    )
    for crops, pixels in zip((0, 2), wanted, strict=True):
        assert torch.equal(found(crops).pixels(paths)["pixel_values"], pixels)
    assert not decoded
    found(3).pixels(paths)
    assert len(decoded) == 3, "nine parts were not prepared"


def test_a_picture_that_has_changed_is_decoded(own, challenge, tmp_path):
    config, folder = own
    data = shutil.copytree(challenge.folder, tmp_path / "data")
    prepare_base(dataclasses.replace(config, data=str(data)), folder)
    first, second = challenge.train["path"].unique()[:2]
    shutil.copy(data / second, data / first)
    processor = load_processor(dataclasses.replace(config, model=str(folder)))
    one, other = (
        Encoder(processor, data, config.image_side).pixels([path]) for path in (first, second)
    )
    assert torch.equal(one["pixel_values"], other["pixel_values"])


def test_wrong_data_is_told_before_the_base_is_packed(own, challenge, tmp_path):
    config, folder = own
    data = shutil.copytree(challenge.folder, tmp_path / "data")
    (data / challenge.test["path"].iloc[0]).unlink()
    with pytest.raises(DataError):
        prepare_base(dataclasses.replace(config, data=str(data)), folder)
    assert not folder.parent.exists()


def test_experts_wait_in_files_until_they_are_saved(own, monkeypatch):
    config, folder = own
    seen = []
    save = AutoModelForImageTextToText

    def watched(*arguments, **named):
        model = real(*arguments, **named)
        for module in model.modules():
            if isinstance(module, NF4Experts):
                seen.extend(getattr(module, name).untyped_storage() for name in PROJECTIONS)
        return model

    real = save.from_pretrained
    monkeypatch.setattr(save, "from_pretrained", watched)
    prepare_base(config, folder)
    assert seen and all(storage.filename for storage in seen)


def test_what_cannot_be_packed_is_told(own, tmp_path):
    config, folder = own
    with pytest.raises(RunError, match="quantization: expected nf4, found none"):
        prepare_base(dataclasses.replace(config, quantization="none"), folder)
    assert not folder.parent.exists()
    prepare_base(config, folder)
    with pytest.raises(RunError, match="expected a new folder"):
        prepare_base(config, folder)
    again = dataclasses.replace(config, model=str(folder))
    with pytest.raises(RunError, match="expected weights in 16 bits"):
        prepare_base(again, tmp_path / "again")


def test_a_base_that_is_packed_in_another_way_is_refused_before_the_run(own):
    config, folder = own
    prepare_base(config, folder)
    packed = dataclasses.replace(config, model=str(folder))
    with pytest.raises(MachineError, match=r"the rest in float32.*the rest in float16.*use_amp"):
        check_run(packed, [])
    check_run(packed, [T4])
    single = dataclasses.replace(packed, use_double_quant=False)
    with pytest.raises(MachineError, match=r"use_double_quant False.*use_double_quant True"):
        check_run(single, [T4])


def test_a_failure_leaves_nothing(own, monkeypatch):
    config, folder = own

    def fails(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vqa_utils.model.preparing.load_processor", fails)
    with pytest.raises(OSError, match="No space left"):
        prepare_base(config, folder)
    assert list(folder.parent.iterdir()) == []

"""A base that is packed without a GPU is the one that a run packs for itself."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForImageTextToText

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.manifest import MANIFEST
from vqa_utils.artifacts.paths import DEMO_MODEL
from vqa_utils.errors import RunError
from vqa_utils.exporting.inputs import Place, find_model
from vqa_utils.model.loading import load_packed
from vqa_utils.model.nf4.experts import PROJECTIONS, NF4Experts
from vqa_utils.model.preparing import prepare_base
from vqa_utils.planning.machine.check import check_run
from vqa_utils.planning.machine.gpus import T4, MachineError
from vqa_utils.planning.source.check import check_source, is_packed

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

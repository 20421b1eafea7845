"""A base that one process has loaded, in the memory of others."""

import dataclasses
import signal
import subprocess
import sys

import pytest
import torch
from transformers import Trainer

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.errors import RunError
from vqa_utils.model import loading
from vqa_utils.model.adapter import add_lora
from vqa_utils.model.lending import attach, lender
from vqa_utils.model.lending.blocks import allocate, mapped
from vqa_utils.model.lending.fingerprint import CHUNK, fingerprint
from vqa_utils.model.loading import base_key, compute_dtype, load_base, load_packed
from vqa_utils.scoring.fold import score_fold
from vqa_utils.sharing.gpu_memory import PAGE
from vqa_utils.sharing.lent import LentBase
from vqa_utils.training.fold import train_fold


@pytest.fixture
def lent(config, monkeypatch):
    """Lends the demo's base to this process, and counts how often one is loaded."""
    key = base_key(config, compute_dtype(config))
    base, memories = lender.lend(load_packed(config, None), key)
    description = LentBase.from_json(base.to_json())
    monkeypatch.setattr(
        attach,
        "lent_base",
        lambda asked: (
            (description, [memory.export() for memory in memories]) if asked == key else None
        ),
    )
    attach._mapped_base.cache_clear()
    monkeypatch.setattr(attach, "_mapped", [])
    loads = []
    monkeypatch.setattr(
        loading, "load_packed", lambda *args: loads.append(args) or load_packed(*args)
    )
    yield base, memories, loads
    attach._mapped_base.cache_clear()


def test_a_lent_base_is_the_loaded_one_bit_by_bit(config, base, lent):
    found = load_base(config, None)
    assert lent[2] == [], "nothing was loaded"
    ours, theirs = found.state_dict(), base.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    assert found.name_or_path == base.name_or_path
    assert type(found) is type(base)
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_a_lent_base_is_not_copied(config, lent):
    found = load_base(config, None)
    (mapped_base,) = attach._mapped
    blocks = mapped_base.blocks
    ranges = [(block.data_ptr(), block.data_ptr() + len(block)) for block in blocks]

    def is_lent(tensor):
        return any(first <= tensor.data_ptr() < end for first, end in ranges)

    assert all(is_lent(parameter) for parameter in found.parameters())
    experts = [buffer for name, buffer in found.named_buffers() if "experts" in name]
    assert len(experts) > 8 and all(map(is_lent, experts))
    assert attach.borrowed_bytes(0) == 0, "these are in host memory"


@pytest.mark.parametrize("change", [{"use_double_quant": False}, {"quantization": "none"}])
def test_a_fold_that_needs_another_base_loads_it(config, lent, change):
    load_base(dataclasses.replace(config, **change), None)
    assert len(lent[2]) == 1


def change_a_byte(lent):
    base, memories, _ = lent
    place = next(place for name, place in base.tensors.items() if "layers.2.mlp" in name)
    memories[place.block].tensor[place.offset] ^= 1


CHANGED = r"layers\.2\..*--resume"


def test_a_changed_byte_is_found_and_named(config, lent):
    change_a_byte(lent)
    with pytest.raises(RunError, match=CHANGED):
        load_base(config, None)


def test_results_of_a_base_that_has_changed_meanwhile_are_not_written(
    config, lent, encoder, challenge, tmp_path, monkeypatch
):
    rows, paths = challenge.train, FoldPaths(tmp_path / "fold")
    tuned = add_lora(load_base(config, None), config, None)
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: change_a_byte(lent))
    with pytest.raises(RunError, match=CHANGED):
        train_fold(tuned, config, encoder, rows.head(4), rows.tail(4), paths)
    with pytest.raises(RunError, match=CHANGED):
        score_fold(tuned.eval(), encoder, {"test": challenge.test}, config, paths, paths)
    assert not paths.adapter.exists() and not paths.probs("test").exists()


WRITES = """
import torch
from vqa_utils.model.lending.blocks import allocate, mapped
from vqa_utils.sharing.gpu_memory import PAGE
memory = allocate(PAGE, None)
memory.tensor.fill_(3)
seen = mapped(memory.export(), PAGE, None)
print(int(seen.sum()) == 3 * PAGE, flush=True)
seen[0] = 1
"""


@pytest.mark.slow
def test_what_is_lent_cannot_be_written():
    found = subprocess.run(
        [sys.executable, "-c", WRITES], capture_output=True, text=True, check=False
    )
    assert found.stdout == "True\n" and found.returncode == -signal.SIGSEGV


def test_borrowed_memory_follows_the_lender():
    memory = allocate(2 * PAGE, None)
    seen = mapped(memory.export(), 2 * PAGE, None)
    memory.tensor[PAGE] = 7
    assert int(seen[PAGE]) == 7


@pytest.mark.parametrize("place", [0, 8 * CHUNK - 1, 8 * CHUNK, 8 * CHUNK + 12])
def test_every_byte_counts_in_a_fingerprint(place):
    data = torch.arange(8 * CHUNK + 16, dtype=torch.int32).to(torch.uint8)
    before = fingerprint(data)
    assert fingerprint(data.clone()) == before and 0 <= before < 2**64
    data[place] ^= 0x80
    assert fingerprint(data) != before


def test_swapped_words_have_another_fingerprint():
    data = torch.zeros(64, dtype=torch.uint8)
    data[8] = 1
    assert fingerprint(data) != fingerprint(data.roll(8))


def test_tied_weights_are_lent_once():
    weight = torch.arange(8.0)
    state = {"embed": weight, "other": torch.ones(8), "head": weight}
    memories, blocks, places = lender.pack(state)
    assert places["head"] == places["embed"] != places["other"]
    assert state == {} and len(blocks) == len(memories)
    assert torch.equal(
        attach.view_of(memories[places["head"].block].tensor, places["head"]), weight
    )


def test_lending_needs_room_for_one_block_more(config, monkeypatch):
    """Tensors are let go of block by block, not at the end."""
    left = []
    names = [f"model.language_model.layers.{number}.weight" for number in range(3)]
    state = {name: torch.ones(8) for name in names}
    monkeypatch.setattr(
        lender, "allocate", lambda *args: left.append(len(state)) or allocate(*args)
    )
    lender.pack(state)
    assert left == [3, 2, 1] and state == {}

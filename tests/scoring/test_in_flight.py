"""Several batches at a time on the GPUs of one model, without any GPU."""

import threading
import types

import pandas as pd
import pytest
import torch
from bases import base_with_lora

from vqa_utils.model import hand_over
from vqa_utils.planning.shapes import LAYERS
from vqa_utils.scoring._in_flight import in_flight
from vqa_utils.scoring.options import ScoringSettings, score_options

PATIENCE = 60  # seconds until a wait in vain fails


@pytest.fixture
def cut(config, monkeypatch):
    """The demo's base with an adapter that says something, cut as over two GPUs."""
    monkeypatch.setattr(hand_over, "TURNS", None)
    tuned = base_with_lora(config).eval()
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    halves = ([f"{LAYERS}.{number}" for number in pair] for pair in ((0, 1), (2, 3)))
    gpus = [types.SimpleNamespace(layers=layers) for layers in halves]
    return tuned, types.SimpleNamespace(gpus=gpus, gives_back=False, batches_in_flight=2)


@pytest.mark.parametrize("orders", [1, 4])
def test_probabilities_are_the_same_bits(cut, encoder, challenge, orders):
    tuned, plan = cut
    settings = ScoringSettings(batch_size=2, orders=orders)
    wanted = score_options(tuned, encoder, challenge.test, settings)
    hand_over.use_turns(tuned, plan, with_folds=False)
    at_work = set()
    forward = tuned.forward

    def watched(*args, **kwargs):
        at_work.add(threading.get_ident())
        assert not torch.is_grad_enabled()
        return forward(*args, **kwargs)

    tuned.forward = watched
    found = score_options(tuned, encoder, challenge.test, settings)
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    assert len(at_work) == 2 and threading.get_ident() not in at_work


def test_one_is_on_the_second_gpu_while_another_is_on_the_first(cut):
    tuned, plan = cut
    hand_over.use_turns(tuned, plan, with_folds=False)
    both_are_here = threading.Barrier(2)

    def compute(item):
        hand_over.TURNS.move_to(0)
        hand_over.TURNS.move_to(1)
        if item == 0:
            both_are_here.wait(PATIENCE)  # for the next one, on the first GPU
        hand_over.end_turn()
        return item

    def items():
        yield 0
        yield from range(1, 5)

    def first_of_next(item):
        if item == 1:
            hand_over.TURNS.move_to(0)
            both_are_here.wait(PATIENCE)
        return compute(item)

    assert list(in_flight(tuned, first_of_next, items())) == [0, 1, 2, 3, 4]


def test_no_more_than_two_are_taken_ahead(cut):
    """Each has its images in memory."""
    tuned, plan = cut
    hand_over.use_turns(tuned, plan, with_folds=False)
    taken = []

    def items():
        for item in range(6):
            taken.append(item)
            yield item

    for item in in_flight(tuned, lambda item: item, items()):
        assert len(taken) <= item + 2


def test_an_error_in_a_turn_lets_the_others_end(cut):
    tuned, plan = cut
    hand_over.use_turns(tuned, plan, with_folds=False)

    def compute(item):
        hand_over.TURNS.move_to(item % 2)
        if item == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return item

    with pytest.raises(torch.OutOfMemoryError):
        list(in_flight(tuned, compute, range(6)))
    assert hand_over.TURNS is None

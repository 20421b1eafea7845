"""A model in turns on GPUs, whose order is looked at without any."""

import dataclasses
import threading
import types

import pytest
import torch
from bases import base_with_lora

from vqa_utils.model import hand_over, loading
from vqa_utils.planning.shapes import LAYERS

PATIENCE = 60  # seconds until a wait in vain fails


@pytest.fixture
def moves(monkeypatch):
    """What is taken and given, in its order."""
    log = []
    monkeypatch.setattr(hand_over, "take", lambda gpu: log.append(f"take {gpu}"))
    monkeypatch.setattr(hand_over, "give", lambda gpu: log.append(f"give {gpu}"))
    monkeypatch.setattr(hand_over, "TURNS", None)
    return log


def plan_of(*counts):
    """A plan with so many of the demo's four layers on each GPU."""
    gpus = []
    start = 0
    for count in counts:
        layers = [f"{LAYERS}.{number}" for number in range(start, start + count)]
        gpus.append(types.SimpleNamespace(layers=layers))
        start += count
    plan = types.SimpleNamespace(gpus=gpus, gives_back=False, offloaded_layers=())
    plan.batches_in_flight = 2
    return plan


def gradients(tuned, batch, log=None):
    inputs = dict(batch)
    labels = inputs.pop("labels")
    torch.manual_seed(0)
    logits = tuned(**inputs).logits[:, 0].float()
    loss = torch.nn.functional.cross_entropy(logits, labels[:, 1 - batch["logits_to_keep"]])
    if log is not None:
        log.append("backward")
    loss.backward()
    found = {name: p.grad.clone() for name, p in tuned.named_parameters() if p.grad is not None}
    tuned.zero_grad()
    return found


@pytest.fixture
def batch(encoder, challenge):
    return encoder.examples(challenge.train.head(4).to_dict("records"))


@pytest.mark.parametrize("recomputes", [True, False])
@pytest.mark.parametrize(
    ("counts", "there", "back"),
    [
        ((2, 2), ["take 0", "give 0", "take 1"], ["give 1", "take 0"]),
        (
            (1, 2, 1),
            ["take 0", "give 0", "take 1", "give 1", "take 2"],
            ["give 2", "take 1", "give 1", "take 0"],
        ),
    ],
)
def test_a_step_holds_one_gpu_at_a_time_and_computes_the_same(
    config, batch, moves, counts, there, back, recomputes
):
    settings = dataclasses.replace(config, use_gradient_checkpointing=recomputes)
    tuned = base_with_lora(settings).train()
    wanted = gradients(tuned, batch)
    hand_over.use_turns(tuned, plan_of(*counts), with_folds=True)
    found = gradients(tuned, batch, moves)
    steps = [*there, "backward", *back]
    assert moves == steps
    hand_over.end_turn()
    assert moves == [*steps, "give 0"]
    assert found.keys() == wanted.keys() and len(found) > 8
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_forward_without_gradients_ends_its_turns(config, encoder, challenge, moves):
    tuned = base_with_lora(config).eval()
    questions = encoder.questions(challenge.test.head(3).to_dict("records"))
    with torch.inference_mode():
        wanted = tuned(**questions).logits
        hand_over.use_turns(tuned, plan_of(3, 1), with_folds=True)
        found = tuned(**questions).logits
    assert moves == ["take 0", "give 0", "take 1", "give 1"]
    assert torch.equal(found, wanted)
    hand_over.end_turn()
    assert len(moves) == 4, "no turn is left to end"


def test_without_sharing_nothing_takes_turns(config, batch, moves):
    tuned = base_with_lora(config).train()
    gradients(tuned, batch)
    hand_over.end_turn()
    assert moves == []


def test_a_failed_kernel_does_not_keep_the_next_one_waiting(moves, monkeypatch):
    def fail(gpu):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    turns = hand_over.GpuTurns(hand_over.take, hand_over.give)
    turns.move_to(0)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        turns.end()
    turns.end()
    assert moves == ["take 0", "give 0"]


def test_a_fold_alone_takes_no_turns_in_training(config, batch, moves):
    tuned = base_with_lora(config).train()
    wanted = gradients(tuned, batch)
    hand_over.use_turns(tuned, plan_of(2, 2), with_folds=False)
    found = gradients(tuned, batch)
    hand_over.end_turn()
    assert moves == []
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_batches_of_a_fold_alone_take_turns(config, moves):
    """Two at a time, but one GPU is one batch's; beside other folds, or on one GPU, one at a time."""
    tuned = base_with_lora(config).eval()
    with hand_over.batches_in_flight(tuned) as count:
        assert count == 1
    hand_over.use_turns(tuned, plan_of(2, 2), with_folds=False)
    with hand_over.batches_in_flight(tuned) as count:
        assert count == 2
        with hand_over.batches_in_flight(tuned) as within:
            assert within == 1
        hand_over.TURNS.move_to(0)
        other = threading.Thread(target=hand_over.TURNS.move_to, args=(0,))
        other.start()
        other.join(0.1)
        assert other.is_alive() and hand_over.TURNS.held == 0
        hand_over.TURNS.move_to(1)
        other.join(PATIENCE)
        assert not other.is_alive() and hand_over.TURNS.held == 1, "each thread has its own"
    assert hand_over.TURNS is None and moves == []
    hand_over.use_turns(tuned, plan_of(2, 2), with_folds=True)
    with hand_over.batches_in_flight(tuned) as count:
        assert count == 1


def test_a_turn_ends_with_the_gpu_idle_and_if_the_plan_says_so_with_memory_given_back(
    moves, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda gpu: moves.append(f"idle {gpu}"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: moves.append("empty"))
    turns = hand_over.GpuTurns(hand_over.take, hand_over.give)
    turns.move_to(1)
    turns.end()
    turns.gives_back = True
    turns.move_to(0)
    turns.end()
    one = ["take 1", "idle 1", "give 1"]
    assert moves == [*one, "take 0", "idle 0", "empty", "give 0"]


@pytest.mark.parametrize(
    ("folds", "gpus", "is_shared", "expected"),
    [(2, 2, True, [True]), (1, 2, True, [False]), (2, 1, True, []), (2, 2, False, [False])],
)
def test_folds_around_a_base_on_several_gpus_take_turns(
    config, monkeypatch, folds, gpus, is_shared, expected
):
    tuned = base_with_lora(config)
    used = []
    monkeypatch.setattr(loading, "use_turns", lambda *args, with_folds: used.append(with_folds))
    monkeypatch.setattr(loading, "is_shared", lambda: is_shared)
    settings = dataclasses.replace(config, folds_at_once=folds)
    loading.finish(tuned, settings, plan_of(*[4 // gpus] * gpus))
    assert used == expected

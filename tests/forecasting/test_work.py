"""The work of a pass: its counts, and the recorded times that they explain."""

import json
from dataclasses import replace
from math import prod

import pytest

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.config import parse_settings
from vqa_utils.forecasting._expert_loads import expected_slots, expert_loads
from vqa_utils.forecasting._work import Pass, Work, work_of
from vqa_utils.forecasting.rates import RATES, SUSTAINED, Rates, Seconds, rates_of, seconds_of
from vqa_utils.planning.batches import Batch, batch_of
from vqa_utils.planning.expert_chunks import WORTH_ON_TURING, WORTH_SINCE_AMPERE
from vqa_utils.planning.plan import make_plan
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import preset

SPEED = json.loads((ROOT / "tests/bench/speed.json").read_text())
RECORDED = [case for case in SPEED if case.get("variant") == "ours"]
CASES = []
for case in RECORDED:
    for mode in ("train", "score"):
        if mode in case:
            case_id = f"{mode}-{case['rows']}-{case.get('change', '')}"
            CASES.append(pytest.param(case, mode, id=case_id))


def works_of(config, batch, *, limits=(28e9,), worth=WORTH_SINCE_AMPERE, training=True):
    """The work of each GPU of the preset's plan."""
    shape = shape_of(config)
    plan = make_plan(config, shape, [int(limit) for limit in limits])
    one_pass = Pass(batch, training)
    return [work_of(gpu, shape, config, one_pass, worth) for gpu in plan.gpus]


def predicted(case, mode):
    """The work of a pass of `speed.py`, and its time on the H100 that it was measured on."""
    changes = parse_settings(filter(None, case.get("change", "").split(",")))
    # `speed.py` takes this plan, but for larger passes
    config = preset("safe", max_memory=("28GB",), **changes)
    if mode == "train" and case["rows"] > config.effective_batch:
        config = replace(config, micro_batch=case["rows"], accumulation=1)
    image_tokens = batch_of(shape_of(config), config, 1).image_tokens
    batch = Batch(case["rows"], image_tokens, case["tokens"][mode] - image_tokens)
    (work,) = works_of(config, batch, training=mode == "train")
    return work, seconds_of([work], [RATES["H100"]])


def test_one_row_and_the_largest_passes_are_recorded():
    assert {case["rows"] for case in RECORDED} >= {1, 16, 32, 128}


@pytest.mark.parametrize(("case", "mode"), CASES)
def test_the_busy_time_is_within_a_quarter_of_every_recorded_one(case, mode):
    """Two constants are fitted: `SUSTAINED` on an earlier run's busy time in training 16 rows, `ALIKE` on the padding below."""
    _, seconds = predicted(case, mode)
    assert seconds.busy / case["rows"] == pytest.approx(case[mode]["busy_s"], rel=0.25)


@pytest.mark.parametrize(("case", "mode"), CASES)
def test_the_launches_are_within_a_quarter_of_every_recorded_number(case, mode):
    work, seconds = predicted(case, mode)
    assert work.launches / case["rows"] == pytest.approx(case[mode]["kernels"], rel=0.25)
    assert 0.5 < seconds.wall / case["rows"] / case[mode]["wall_s"] < 2  # hosts differ by that much


@pytest.mark.parametrize(("case", "mode"), CASES)
def test_the_loads_are_padded_as_every_recorded_ones(case, mode):
    """Random weights, each batch its own; the constant behind the loads was fitted on two earlier runs'."""
    tokens = case["rows"] * case["tokens"][mode]
    expected = expected_slots(128, 8, tokens, WORTH_SINCE_AMPERE)
    assert expected.slots / (8 * tokens) == pytest.approx(case[mode]["padded"], rel=0.05)
    assert expected.chunks == pytest.approx(case[mode]["chunks"], rel=0.25)
    for loads in expert_loads(128, 8, tokens):
        assert sum(loads) == pytest.approx(8 * tokens, rel=0.01) and max(loads) <= tokens
        assert list(loads) == sorted(loads, reverse=True)
    on_turing = expected_slots(128, 8, tokens, WORTH_ON_TURING)
    assert on_turing.chunks > expected.chunks  # a T4 pads less


def test_operations_are_two_a_weight_and_token_forward_and_more_with_a_backward():
    config = preset("dense_8b", max_memory=("28GB",))
    batch, shape = Batch(4, 196, 128), shape_of(config)
    (forward,) = works_of(config, batch, training=False)
    layers = sum(
        prod(size)
        for name, size in shape.parameters.items()
        if ".layers." in name and len(size) == 2
    )
    text = 2 * layers * batch.tokens
    vision = 2 * 27 * (4 * 1152**2 + 2 * 1152 * 4304) * 4 * 196 * 4  # four patches an image token
    assert 1.0 < forward.operations / (text + vision) < 1.1  # scores, mergers, head
    checkpointed, kept = (
        works_of(replace(config, use_gradient_checkpointing=on), batch)[0].operations
        - forward.operations
        for on in (True, False)
    )
    down = 36 * 4096 * 12288  # whose output nothing needs again
    assert kept == pytest.approx(text, rel=0.05)
    assert checkpointed - kept == pytest.approx(text - 2 * down * batch.tokens, rel=0.05)


def test_experts_are_not_multiplied_again_by_checkpointing():
    config = preset("safe", max_memory=("28GB",))
    with_it, without = (
        works_of(replace(config, use_gradient_checkpointing=on), Batch(4, 144, 128))[0]
        for on in (True, False)
    )
    attention = 48 * (2 * 2048 * 4096 + 2 * 2048 * 512)
    scores = 48 * 4 * 4096 * 272 / 2  # causal
    assert with_it.operations - without.operations == pytest.approx(
        (2 * attention + scores) * 4 * 272
    )
    assert 0 < with_it.launches - without.launches < 48 * 30


def test_two_gpus_share_the_work_and_take_turns():
    config = preset("safe", use_gradient_checkpointing=True)
    batch = Batch(16, 144, 128)
    both, (alone,) = works_of(config, batch, limits=(14e9, 14e9)), works_of(config, batch)
    for part in ("operations", "moved", "launches"):
        assert sum(getattr(work, part) for work in both) == pytest.approx(getattr(alone, part))
        assert 0.3 < getattr(both[0], part) / getattr(alone, part) < 0.7
    t4 = RATES["T4"]
    assert seconds_of(both, [t4, t4]).busy == pytest.approx(seconds_of([alone], [t4]).busy)


def test_offloaded_experts_come_over_the_bus_forward_and_back():
    config, batch = preset("safe", offload_experts=True), Batch(16, 144, 128)
    (training,) = works_of(config, batch, limits=(14e9,))
    (scoring,) = works_of(config, batch, limits=(14e9,), training=False)
    plan = make_plan(config, shape_of(config), [int(14e9)])
    a_layer = 128 * 3 * 2048 * 768 * 4.127 / 8
    offloaded = len(plan.offloaded_layers)
    assert training.copied == pytest.approx(2 * offloaded * a_layer, rel=0.01)
    assert scoring.copied == training.copied / 2
    assert works_of(config, batch)[0].copied == 0


def test_seconds_are_those_of_what_takes_longest():
    rates = Rates(products=100, memory=50, bus=5, kernel=0, launch=0.1, padding_worth=0)
    work = Work(operations=100 * SUSTAINED, moved=100 * SUSTAINED, copied=10, launches=10)
    seconds = seconds_of([work], [rates])
    assert seconds == Seconds(products=1.0, memory=2.0, bus=2.0, host=1.0, turns=(3.0,))
    assert (seconds.busy, seconds.wall, seconds.bound) == (3.0, 3.0, "bytes")
    for change, wall, bound in [
        ({"launch": 1}, 10, "launches"),
        ({"bus": 1}, 10, "the bus"),
        ({"products": 20}, 7, "products"),
    ]:
        changed = seconds_of([work], [replace(rates, **change)])
        assert (changed.wall, changed.bound) == (wall, bound)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA T400", None),
        ("Tesla V100-SXM2-32GB", None),
    ],
)
def test_rates_are_known_by_the_gpus_name(name, known):
    assert rates_of(name) is RATES.get(known)

"""How many folds share the base: what fits, and what saves time."""

import dataclasses

import pytest

from vqa_utils.forecasting.folds_at_once import with_folds_at_once
from vqa_utils.forecasting.forecast import ASSUMED_ROWS, _finish_time, forecast
from vqa_utils.forecasting.rates import TURNS_KEPT, Seconds
from vqa_utils.planning.machine.gpus import T4, Gpu
from vqa_utils.planning.plan import plan_for, resolve_for_machine
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import preset

TWO_T4 = [T4, T4]
H100 = [Gpu("NVIDIA H100 80GB HBM3", 79.6)]
TWO_H200 = [Gpu("NVIDIA H200", 139.8)] * 2


def chosen(name, gpus, rows=None, **changes):
    return with_folds_at_once(preset(name, **changes), gpus, rows).folds_at_once


def minutes(name, gpus, **changes):
    config = preset(name, **changes)
    return forecast(config, shape_of(config), gpus, ASSUMED_ROWS).run_s / 60


@pytest.mark.parametrize("name", ["safe", "balanced", "low_memory"])
@pytest.mark.slow
def test_two_t4_take_more_than_one_fold_with_as_many_rows_a_pass(name):
    count = chosen(name, TWO_T4)
    assert count in (2, 3)
    shared, alone = (
        resolve_for_machine(preset(name, folds_at_once=folds), TWO_T4) for folds in (count, 1)
    )
    assert shared.micro_batch == alone.micro_batch
    plan = plan_for(shared, TWO_T4)
    assert plan.fits and plan.leaves_reserve
    assert minutes(name, TWO_T4, folds_at_once=count) < 0.9 * minutes(name, TWO_T4, folds_at_once=1)


@pytest.mark.parametrize(("gib", "folds"), [(29, 3), (20, 2), (12, 1), (None, 3)])
def test_the_machines_own_memory_bounds_the_folds_at_a_time(gib, folds):
    """Kaggle's 31 GiB are enough for three; each has a process and its workers."""
    config = preset("safe", cache_features=True)
    host_bytes = gib and gib * 2**30
    assert with_folds_at_once(config, TWO_T4, None, host_bytes).folds_at_once == folds


def test_a_chosen_number_stays():
    assert chosen("safe", TWO_T4, folds_at_once=3) == 3


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("safe", {"use_kfold": False}),  # one fold
        ("dense_8b", {}),  # a GPU for each fold
        ("safe", {"quantization": "none", "max_memory": ("80GB", "80GB")}),
        ("safe", {"device_map": "auto"}),
    ],
)
def test_one_at_a_time_where_nothing_can_be_shared(name, changes):
    assert chosen(name, TWO_T4, **changes) == 1


@pytest.mark.slow
def test_a_t4_that_offloads_experts_shares_nothing():
    assert chosen("safe", [T4], offload_experts=True, max_memory=("14GB",)) == 1


@pytest.mark.slow
def test_one_large_gpu_takes_folds_side_by_side_where_it_waits_for_its_host(monkeypatch):
    monkeypatch.setattr("vqa_utils.forecasting.folds_at_once.cpu_count", lambda: 4)
    assert chosen("safe", H100, max_memory=()) > 1


def test_folds_on_one_gpu_have_a_core_each(monkeypatch):
    monkeypatch.setattr("vqa_utils.forecasting.folds_at_once.cpu_count", lambda: 1)
    assert chosen("safe", H100, max_memory=()) == 1
    assert chosen("safe", TWO_T4) == 2, "in turns, one waits for a GPU anyway"


@pytest.mark.slow
def test_gpus_of_unknown_speed_take_a_fold_each_if_rows_a_pass_stay():
    assert chosen("safe", TWO_H200, max_memory=("36GB", "36GB")) == 2
    assert chosen("safe", TWO_H200) == 2, "14 GB each: with memory given back, as on T4"
    assert chosen("safe", TWO_H200[:1], max_memory=()) == 1


def test_folds_in_turns_are_bound_by_the_slowest_gpu():
    even = Seconds(1.0, 1.0, 0, 0, turns=(1.0, 1.0))
    assert even.gain(1) == 1
    assert even.gain(2) == pytest.approx(2 * TURNS_KEPT)
    assert even.gain(3) == pytest.approx(2 * TURNS_KEPT), "two GPUs do no more than two"
    uneven = Seconds(1.0, 1.0, 0, 0, turns=(1.5, 0.5))
    assert uneven.gain(2) == pytest.approx(2 / 1.5 * TURNS_KEPT)


def test_folds_on_one_gpu_only_fill_its_gaps():
    assert Seconds(1.0, 1.0, 0, 1.0, turns=(2.0,)).gain(2) == 1
    assert Seconds(1.0, 0.0, 0, 2.0, turns=(2.0,)).gain(2) == 2


def test_a_run_ends_with_the_last_of_its_steps():
    def shared(steps):
        return 1.5 if steps == 2 else 1.0

    assert _finish_time([10, 10], [2, 2], 1) == 24
    assert _finish_time([10, 10], [2, 2], 2) == 12
    # 20 seconds of training at a pace of 1.5, then 4 of scoring
    assert _finish_time([10, 10], [2, 2], 2, shared) == pytest.approx(24 / 1.5)
    # The third trains alone but for 2 seconds of the others' scoring each
    alone = _finish_time([10, 10, 10], [0, 0, 0], 2, shared)
    assert alone == pytest.approx(20 / 1.5 + 10)


def test_a_fold_at_a_time_takes_the_memory_of_one():
    config = resolve_for_machine(preset("safe", folds_at_once=1), TWO_T4)
    one = plan_for(config, TWO_T4)
    two = plan_for(dataclasses.replace(config, folds_at_once=2), TWO_T4)
    assert two.weights == one.weights
    for gpu in two.gpus:
        assert gpu.gives_back
        base = sum(gpu.weights.values()) - gpu.weights["LoRA and its optimizer"]
        norms = gpu.weights["norms and router"]  # in fp32, of each fold
        assert gpu.peaks["training"] == base + norms + gpu.kept + gpu.of_one_fold
    for alone, gpu in zip(one.gpus, two.gpus, strict=True):
        # Beside one that scores, another may be between its turns of a training step
        of_scoring = alone.peaks["scoring"] - sum(alone.weights.values())
        base = sum(gpu.weights.values()) - gpu.weights["LoRA and its optimizer"]
        lora = gpu.weights["LoRA and its optimizer"] + gpu.weights["norms and router"]
        assert gpu.peaks["scoring"] == pytest.approx(base + lora + of_scoring + gpu.kept, rel=1e-3)


def test_layers_skip_checkpointing_only_where_the_scoring_of_another_fold_still_fits():
    settings = {"folds_at_once": 2, "micro_batch": 16, "accumulation": 1, "score_batch": 46}
    plan = plan_for(preset("safe", **settings), TWO_T4)
    assert plan.gives_back and plan.fits

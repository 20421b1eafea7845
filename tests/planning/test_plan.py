import functools
import io
import itertools
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from math import prod

import pytest
from rich.console import Console

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.config import parse_settings
from vqa_utils.planning.gpus import T4, gpu_limits
from vqa_utils.planning.memory import (
    LONG_TEXT_TOKENS,
    LONGER_INSTRUCTION,
    TEXT_TOKENS,
    batch_of,
    nf4_bytes,
    saved_bytes,
    weight_bytes,
)
from vqa_utils.planning.placement import HEAD, VISION
from vqa_utils.planning.plan import Plan, largest_micro_batch, make_plan, resolve_batches, with_text
from vqa_utils.planning.shapes import group_of, published_config, read_shape, shape_of
from vqa_utils.presets import PRESETS, preset
from vqa_utils.running.plan_table import print_plan
from vqa_utils.setting_types import size_in_bytes

GIB = 2**30
SHAPE = read_shape(published_config("Qwen/Qwen3-VL-30B-A3B-Instruct"))


def planned_of(name="safe", limits=(14e9, 14e9), **changes):
    return make_plan(preset(name, **changes), SHAPE, [int(limit) for limit in limits])


def test_the_30b_is_as_large_as_measured():
    config = preset("safe")
    weights = sum(weight_bytes(name, shape, config) for name, shape in SHAPE.parameters.items())
    assert weights / GIB == pytest.approx(16.57, abs=0.01)  # tests/bench/README.md
    experts = [shape for name, shape in SHAPE.parameters.items() if group_of(name) == "experts"]
    assert sum(nf4_bytes(prod(shape), True) for shape in experts) * 8 / sum(
        map(prod, experts)
    ) == pytest.approx(4.127, abs=1e-3)
    assert nf4_bytes(6400, False) * 8 / 6400 == 4.5
    unpacked = replace(config, quantization="none")
    assert sum(
        weight_bytes(n, s, unpacked) for n, s in SHAPE.parameters.items()
    ) / 2e9 == pytest.approx(31.07, rel=1e-3)


RECORDED = json.loads((ROOT / "tests" / "bench" / "real_shape.json").read_text())


@pytest.mark.parametrize(
    "recorded", RECORDED, ids=lambda recorded: f"{recorded['case']}-{len(recorded['limit_gib'])}"
)
def test_the_plan_is_within_five_percent_of_every_recorded_peak(recorded):
    name, _, changes = recorded["case"].partition(":")
    limits = [int(limit * GIB) for limit in recorded["limit_gib"]]
    config = preset(name, **parse_settings(filter(None, changes.split(","))))
    config = replace(
        config,
        micro_batch=recorded["micro_batch"],
        accumulation=1,
        score_batch=recorded["score_batch"],
    )
    shape = shape_of(config)
    text_tokens = recorded["tokens"] - batch_of(shape, config, 1).image_tokens
    kept = []
    whole = zip(
        make_plan(config, shape, limits).gpus,
        recorded["layers"],
        recorded["kept_layers"],
        strict=True,
    )
    for gpu, there, count in whole:
        layers = [module for module in gpu.modules if ".layers." in module]
        assert len(layers) == there  # the cut that was measured
        kept.append(
            replace(gpu, uncheckpointed_layers=tuple(layers[len(layers) - count :]))
        )  # as many as it was measured with
    plan = with_text(Plan(tuple(kept)), config, shape, text_tokens)
    loaded = [recorded["load_peak_gib"], *[0.0] * (len(limits) - 1)]  # seen on the first GPU alone
    for gpu, *measured in zip(
        plan.gpus, recorded["trained_gib"], recorded["scored_gib"], loaded, strict=True
    ):
        assert gpu.total / GIB == pytest.approx(max(measured), rel=0.05)
    assert len(plan.offloaded_layers) == recorded["streamed_layers"]


SCORED = [
    pytest.param(case, mode, id=f"{case['rows']}-{mode}-{case.get('change', '')}")
    for case in json.loads((ROOT / "tests" / "bench" / "speed.json").read_text())
    for mode in ("score", "score_2", "score_4")
    if case.get("variant") == "ours" and mode in case
]


@pytest.mark.parametrize(("recorded", "mode"), SCORED)
def test_what_scoring_takes_is_within_two_percent_of_every_recorded_peak(recorded, mode):
    changes = parse_settings(filter(None, recorded.get("change", "").split(",")))
    config = preset(
        "safe", max_memory=("28GB",), micro_batch=16, score_batch=recorded["rows"], tta=1, **changes
    )
    shape = shape_of(config)
    text_tokens = recorded["tokens"][mode] - batch_of(shape, config, 1).image_tokens
    (gpu,) = make_plan(config, shape, [int(28e9)], text_tokens).gpus
    assert gpu.peaks["scoring"] / GIB == pytest.approx(recorded[mode]["peak_gib"], rel=0.02)


def test_the_cut_leaves_the_gpus_equally_free_within_a_layer():
    a_layer = 0.33 * GIB  # its weights, and the input that it leaves for the backward
    for limits in [
        (14e9, 14e9),
        (12e9, 15e9),
        (15e9, 12e9),
        (9e9, 9e9, 9e9),
        (6e9, 6e9, 14e9, 7e9),
    ]:
        plan = planned_of(limits=limits, use_gradient_checkpointing=True)
        left = [gpu.left for gpu in plan.gpus]
        assert plan.fits and max(left) - min(left) <= a_layer, limits
        layers = [m for gpu in plan.gpus for m in gpu.modules if ".layers." in m]
        assert [int(m.rsplit(".", 1)[1]) for m in layers] == list(range(48))  # each once, in order


def test_where_the_ends_of_the_model_lie():
    device_map = planned_of(limits=(6e9, 15e9)).device_map
    assert {
        device_map[m]
        for m in (VISION, "model.language_model.embed_tokens", "model.language_model.rotary_emb")
    } == {0}
    assert device_map[HEAD] == device_map["model.language_model.norm"] == 1
    assert [device_map[f"model.language_model.layers.{i}"] for i in range(3)] == [
        0,
        0,
        0,
    ]  # DeepStack adds to them
    tied = read_shape(published_config("Qwen/Qwen2.5-VL-3B-Instruct"))
    assert (
        make_plan(preset("single_gpu"), tied, [int(3e9), int(3e9)]).device_map[HEAD] == 0
    )  # where the embeddings are


@pytest.mark.parametrize("name", ["safe", "balanced", "low_memory"])
def test_two_t4_hold_the_30b_and_one_holds_it_by_streaming(name):
    limits = gpu_limits(preset(name), [T4, T4])
    assert limits == [size_in_bytes(size) for size in preset(name).max_memory]
    assert planned_of(name, limits).fits and not planned_of(name, limits[:1]).fits
    offloading = planned_of(name, limits[:1], offload_experts=True)
    assert offloading.fits and 10 < len(offloading.offloaded_layers) < 30
    streamed = [int(layer.rsplit(".", 1)[1]) for layer in offloading.offloaded_layers]
    gaps = {after - before for before, after in itertools.pairwise(streamed)}
    assert (
        max(gaps) - min(gaps) <= 1 and streamed[-1] > 40
    )  # spread over the whole model: copies hide behind what lies between
    assert planned_of(name, limits, offload_experts=True) == planned_of(
        name, limits
    )  # nothing is streamed where all fits


def test_more_rows_pixels_and_rank_take_more():
    planned = functools.partial(planned_of, micro_batch=1, tta=1, use_gradient_checkpointing=True)
    peak = planned().gpus[0].peaks["training"]
    for changes in ({"micro_batch": 2}, {"image_side": 512}, {"lora_r": 16}, {"use_double_quant": False},
                    {"use_gradient_checkpointing": False}):  # fmt: skip
        assert sum(gpu.peaks["training"] for gpu in planned(**changes).gpus) > sum(
            gpu.peaks["training"] for gpu in planned().gpus
        )
    assert planned(use_cpu_offload=True).gpus[0].peaks["training"] < peak
    for changes in (
        {"score_batch": 64},
        {"tta": 4},
    ):  # of both, as layers may move from one to the other
        assert sum(gpu.peaks["scoring"] for gpu in planned(**changes).gpus) > sum(
            gpu.peaks["scoring"] for gpu in planned().gpus
        )


def test_training_in_other_words_takes_the_longest_and_scoring_does_not():
    settings = {"micro_batch": 4, "score_batch": 8, "use_gradient_checkpointing": True}
    usual, other = (
        planned_of(limits=[int(80e9)], paraphrase=paraphrase, **settings).gpus[0]
        for paraphrase in (False, True)
    )
    longer = with_text(
        Plan((usual,)), preset("safe", **settings), SHAPE, TEXT_TOKENS + LONGER_INSTRUCTION
    ).gpus[0]
    assert other.peaks["training"] == longer.peaks["training"] > usual.peaks["training"]
    assert other.peaks["scoring"] == usual.peaks["scoring"] < longer.peaks["scoring"]


def test_what_is_left_free_keeps_layers_for_the_backward():
    limits = [int(14e9)] * 2
    plan, without = (
        planned_of(limits=limits, score_batch=8, use_gradient_checkpointing=on)
        for on in ("auto", True)
    )
    for gpu, plain in zip(plan.gpus, without.gpus, strict=True):
        layers = [module for module in gpu.modules if ".layers." in module]
        count = len(gpu.uncheckpointed_layers)
        assert gpu.modules == plain.modules and not plain.uncheckpointed_layers
        assert 0 < count < len(layers) and gpu.uncheckpointed_layers == tuple(layers[-count:])
    config = resolve_batches(preset("safe", score_batch=8), SHAPE, limits)
    long = with_text(plan, config, SHAPE, LONG_TEXT_TOKENS)
    for gpu in long.gpus:  # which still fit with long rows, and no other layer would
        a_layer = saved_bytes(SHAPE, config, batch_of(SHAPE, config, 16, LONG_TEXT_TOKENS))
        assert gpu.left - a_layer < 0.05 * gpu.limit <= gpu.left
    assert len(planned_of(limits=[int(80e9)]).uncheckpointed_layers) == 48
    assert not planned_of(
        limits=limits[:1], offload_experts=True
    ).uncheckpointed_layers  # memory goes to experts first
    never = planned_of(limits=[int(80e9)] * 2, use_gradient_checkpointing=False)
    assert len(never.uncheckpointed_layers) == 48


@pytest.mark.parametrize("micro_batch", ["auto", 1, 12])
def test_the_largest_micro_batch_divides_the_effective_one_and_leaves_a_reserve(micro_batch):
    config = preset(
        "balanced", micro_batch=micro_batch, accumulation=1 if micro_batch == 12 else 12
    )
    limits = [int(11.2e9), int(11.2e9)]
    largest = largest_micro_batch(config, SHAPE, limits)
    assert 1 < largest < 12 and 12 % largest == 0

    def left(rows):
        return min(gpu.left for gpu in make_plan(config.with_micro_batch(rows), SHAPE, limits).gpus)

    following = next(rows for rows in range(largest + 1, 13) if 12 % rows == 0)
    assert left(largest) >= 0.05 * 11.2e9 > left(following)
    assert largest_micro_batch(config, SHAPE, [int(5e9)]) == 0


def test_auto_takes_the_largest_at_the_same_rows_a_step():
    limits = [int(11.2e9), int(11.2e9)]
    auto = resolve_batches(preset("balanced", tta=1), SHAPE, limits)
    assert (
        auto.micro_batch == largest_micro_batch(preset("balanced"), SHAPE, limits)
        and auto.effective_batch == 12
    )
    assert make_plan(preset("balanced", tta=1), SHAPE, limits) == make_plan(auto, SHAPE, limits)
    one = preset("balanced", micro_batch=1, score_batch=3)
    assert resolve_batches(one, SHAPE, limits) == one  # what the user says stays
    assert resolve_batches(preset("balanced"), SHAPE, [int(5e9)]).micro_batch == 1


def test_as_many_rows_are_scored_as_training_has_memory_for():
    for name, limits in (
        ("safe", [int(14e9)] * 2),
        ("balanced", [int(11.2e9)] * 2),
        ("safe", [int(80e9)]),
    ):
        config = resolve_batches(preset(name), SHAPE, limits)
        gpus = make_plan(config, SHAPE, limits).gpus
        assert all(gpu.peaks["training"] == gpu.total for gpu in gpus)
        if config.score_batch < 128:
            more = make_plan(
                replace(config, score_batch=2 * config.score_batch), SHAPE, limits
            ).gpus
            assert any(gpu.peaks["training"] < gpu.total for gpu in more)
        assert resolve_batches(preset(name, score_batch=5), SHAPE, limits).score_batch == 5
    assert resolve_batches(preset("balanced"), SHAPE, [int(11.2e9)] * 2).score_batch < 64


def test_streaming_leaves_a_reserve_too():
    (gpu,) = planned_of("safe", [14e9], offload_experts=True).gpus
    assert 0.05 * 14e9 <= gpu.left < 0.08 * 14e9


@pytest.mark.parametrize("size", [11.5e9, 10e9, 8.5e9, 7.5e9, 6e9])
def test_gpus_of_one_size_stream_alike_and_little_more_than_one_of_twice_the_size(size):
    both = planned_of("safe", (size, size), offload_experts=True)
    first, second = (len(gpu.offloaded_layers) for gpu in both.gpus)
    assert both.fits and abs(first - second) <= 1
    alone = len(planned_of("safe", [2 * size], offload_experts=True).offloaded_layers)
    assert (
        alone < first + second <= alone + 10
    )  # the second has a layer at work too, and the slots of two


def test_a_small_gpu_that_lacks_more_than_it_has_experts_leaves_layers_to_the_large_one():
    plan = planned_of(
        "low_memory", (8.5e9, 2.9e9), offload_experts=True, micro_batch=4, score_batch=4
    )
    assert plan.fits and sum(len(gpu.offloaded_layers) for gpu in plan.gpus) < 48


def test_the_rows_of_a_pass_do_not_fall_where_all_fits_but_the_reserve():
    for size in (11e9, 12e9, 12.5e9):
        assert (
            resolve_batches(
                preset("safe", offload_experts=True), SHAPE, [int(size)] * 2
            ).micro_batch
            == 16
        )
    tight = planned_of("safe", (12e9, 12e9), offload_experts=True)
    assert tight.leaves_reserve and 0 < len(tight.offloaded_layers) < 6


def test_where_nothing_fits_the_plan_is_what_lacks_least():
    lacking = planned_of("safe", (3e9, 3e9), offload_experts=True, micro_batch=1, score_batch=1)
    first, second = (-gpu.left for gpu in lacking.gpus)
    assert not lacking.fits and 0 < first < 0.3e9 and abs(first - second) < 0.1e9


def test_what_streams_leaves_the_reserve_where_it_can_and_fits_without_it_where_it_cannot():
    assert (
        resolve_batches(preset("safe", offload_experts=True), SHAPE, [int(5e9)] * 2).micro_batch
        == 16
    )  # which asks for the reserve
    tight = planned_of("safe", (3.3e9, 3.3e9), offload_experts=True, micro_batch=1, score_batch=1)
    assert tight.fits and min(gpu.left / gpu.limit for gpu in tight.gpus) < 0.05


def test_no_gpu_is_no_plan_that_fits():
    assert not make_plan(preset("safe"), SHAPE, []).fits


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "demo"])
def test_every_preset_fits_what_it_is_for(name):
    config = preset(name)
    limits = [size_in_bytes(size) for size in config.max_memory]
    assert make_plan(config, shape_of(config), limits).fits


def test_the_table_says_what_the_plan_says():
    console = Console(width=120, record=True, file=io.StringIO())
    plan = print_plan(console, preset("safe"), [T4])
    text = console.export_text()
    numbers = dict(re.findall(r"^│ ([\w ,]+?) +│ +(-?[\d.]+) │$", text, re.MULTILINE))
    assert (
        float(numbers["peak"]) == pytest.approx(plan.gpus[0].total / GIB, abs=0.006)
        and float(numbers["left"]) < 0
    )
    assert float(numbers["experts"]) == pytest.approx(13.93, abs=0.01) and "mlp" not in numbers
    parts = [
        float(size)
        for name, size in numbers.items()
        if name not in ("peak", "limit", "left") and not name.startswith(("in all", "CUDA"))
    ]
    assert sum(parts) == pytest.approx(
        float(numbers["in all, training"]), abs=0.05
    )  # ten roundings
    assert "safe does not fit on 1 x Tesla T4 (--set offload_experts=true" in text
    print_plan(console, preset("safe", offload_experts=True, max_memory=("2GB",)), [T4])
    assert "safe does not fit on 1 x Tesla T4\n" in console.export_text()


def test_the_command_answers_at_once_without_a_gpu():
    start = time.time()
    command = [sys.executable, "run_all.py", "plan", "--preset", "balanced", "--t4", "2"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "balanced fits on 2 x Tesla T4" in found.stdout and "GPU 1" in found.stdout
    assert time.time() - start < 20  # a torch import would show; 0.4 s measured


def test_a_local_model_is_planned_from_its_own_config():
    words = ["run_all.py", "plan", "--t4", "1", "--model", "vqa_utils/tiny_base/model"]
    command = [sys.executable, *words]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "demo fits on 1 x Tesla T4" in found.stdout and "GPU 0: 4 decoder layers" in found.stdout

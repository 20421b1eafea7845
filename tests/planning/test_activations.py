"""The plan's peaks against recorded ones, and what they grow with."""

import functools
import json
from dataclasses import replace

import pytest
from recount import with_text

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.config import parse_settings
from vqa_utils.planning.activations import LONGER_INSTRUCTION, TEXT_TOKENS, batch_of
from vqa_utils.planning.placement import Plan
from vqa_utils.planning.plan import make_plan
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import preset

GIB = 2**30
BENCH = ROOT / "tests" / "bench"
RECORDED = json.loads((BENCH / "real_shape.json").read_text())
SHAPE = shape_of(preset("safe"))


def parsed(changes, separator=","):
    return parse_settings(part for part in changes.split(separator) if part)


@pytest.mark.parametrize(
    "recorded", RECORDED, ids=lambda recorded: f"{recorded['case']}-{len(recorded['limit_gib'])}"
)
def test_the_plan_is_within_five_percent_of_every_recorded_peak(recorded):
    name, _, changes = recorded["case"].partition(":")
    limits = [int(limit * GIB) for limit in recorded["limit_gib"]]
    config = replace(
        preset(name, **parsed(changes)),
        micro_batch=recorded["micro_batch"],
        accumulation=1,
        score_batch=recorded["score_batch"],
    )
    shape = shape_of(config)
    text_tokens = recorded["tokens"] - batch_of(shape, config, 1).image_tokens
    gpus = []
    planned = make_plan(config, shape, limits).gpus
    for gpu, layers, uncheckpointed in zip(
        planned, recorded["layers"], recorded["uncheckpointed_layers"], strict=True
    ):
        assert len(gpu.layers) == layers  # the cut that was measured
        # As many layers without checkpointing as it was measured with
        first = len(gpu.layers) - uncheckpointed
        gpus.append(replace(gpu, uncheckpointed_layers=tuple(gpu.layers[first:])))
    plan = with_text(Plan(tuple(gpus)), config, shape, text_tokens)
    loaded = [recorded["load_peak_gib"], *[0.0] * (len(limits) - 1)]  # seen on the first GPU alone
    for gpu, *measured in zip(
        plan.gpus, recorded["trained_gib"], recorded["scored_gib"], loaded, strict=True
    ):
        assert gpu.total / GIB == pytest.approx(max(measured), rel=0.05)
    assert len(plan.offloaded_layers) == recorded["offloaded_layers"]


SCORED = []
for case in json.loads((BENCH / "speed.json").read_text()):
    for mode in ("score", "score_2", "score_4"):
        if case.get("variant") == "ours" and mode in case:
            case_id = f"{case['rows']}-{mode}-{case.get('change', '')}"
            SCORED.append(pytest.param(case, mode, id=case_id))


@pytest.mark.parametrize(("recorded", "mode"), SCORED)
def test_scoring_is_within_two_percent_of_every_recorded_peak(recorded, mode):
    changes = parsed(recorded.get("change", ""))
    config = preset(
        "safe", max_memory=("28GB",), micro_batch=16, score_batch=recorded["rows"], tta=1, **changes
    )
    shape = shape_of(config)
    text_tokens = recorded["tokens"][mode] - batch_of(shape, config, 1).image_tokens
    plan = make_plan(config, shape, [int(28e9)])
    (gpu,) = with_text(plan, config, shape, text_tokens).gpus
    assert gpu.peaks["scoring"] / GIB == pytest.approx(recorded[mode]["peak_gib"], rel=0.02)


def peaks(phase, **changes):
    """The sum over two GPUs, as layers may move from one to the other."""
    settings = {"micro_batch": 1, "tta": 1, "use_gradient_checkpointing": True, **changes}
    plan = make_plan(preset("safe", **settings), SHAPE, [int(14e9)] * 2)
    return sum(gpu.peaks[phase] for gpu in plan.gpus)


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch": 2},
        {"image_side": 512},
        {"lora_r": 16},
        {"use_double_quant": False},
        {"use_gradient_checkpointing": False},
    ],
)
def test_training_takes_more_with(changes):
    assert peaks("training", **changes) > peaks("training")


@pytest.mark.parametrize("changes", [{"score_batch": 64}, {"tta": 4}])
def test_scoring_takes_more_with(changes):
    assert peaks("scoring", **changes) > peaks("scoring")


def test_training_takes_less_with_its_optimizer_in_host_memory():
    assert peaks("training", use_cpu_offload=True) < peaks("training")


def test_training_in_other_words_takes_the_longest_and_scoring_does_not():
    settings = {"micro_batch": 4, "score_batch": 8, "use_gradient_checkpointing": True}
    plan_of = functools.partial(make_plan, shape=SHAPE, limits=[int(80e9)])
    plan = plan_of(preset("safe", **settings))
    longer_rows = with_text(
        plan, preset("safe", **settings), SHAPE, TEXT_TOKENS + LONGER_INSTRUCTION
    )
    usual = plan.gpus[0].peaks
    longer = longer_rows.gpus[0].peaks
    other = plan_of(preset("safe", paraphrase=True, **settings)).gpus[0].peaks
    assert other["training"] == longer["training"] > usual["training"]
    assert other["scoring"] == usual["scoring"] < longer["scoring"]

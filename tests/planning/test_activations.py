"""The plan's peaks against recorded ones, and what they grow with."""

import functools
import json
from dataclasses import replace

import pytest
from recount import with_text

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.config import TEXT_TOKENS, parse_settings
from vqa_utils.planning.activations import held_in_scoring
from vqa_utils.planning.batches import LONGER_INSTRUCTION, batch_of
from vqa_utils.planning.gpu_plan import Plan
from vqa_utils.planning.placement import Placement
from vqa_utils.planning.plan import make_plan
from vqa_utils.planning.shapes import shape_of
from vqa_utils.presets import preset

GIB = 2**30
BENCH = ROOT / "tests" / "bench"
RECORDED = json.loads((BENCH / "real_shape.json").read_text())
SHAPE = shape_of(preset("safe"))


def parsed(changes, separator=","):
    return parse_settings(part for part in changes.split(separator) if part)


def as_measured(plan, recorded, config, shape):
    """The plan with the cut, and the layers without checkpointing, that were measured."""
    placement = Placement(config, shape)
    gpus = []
    start = 0
    for number, gpu in enumerate(plan.gpus):
        end = start + recorded["layers"][number]
        if len(gpu.layers) != end - start:
            modules = [*(placement.first if number == 0 else placement.last)]
            gpu = placement.without_offloading(modules + placement.layers[start:end], gpu.limit)
        first = end - start - recorded["uncheckpointed_layers"][number]
        gpus.append(replace(gpu, uncheckpointed_layers=tuple(gpu.layers[first:])))
        start = end
    return Plan(tuple(gpus))


@pytest.mark.parametrize(
    "recorded", RECORDED, ids=lambda recorded: f"{recorded['case']}-{len(recorded['limit_gib'])}"
)
def test_the_plan_is_within_a_few_percent_of_every_recorded_peak(recorded):
    name, _, changes = recorded["case"].partition(":")
    limits = [int(limit * GIB) for limit in recorded["limit_gib"]]
    config = replace(
        preset(name, **parsed(changes)),
        micro_batch=recorded["micro_batch"],
        accumulation=1,
        score_batch=recorded["score_batch"],
    )
    shape = shape_of(config)
    image_tokens = batch_of(shape, config, 1).image_tokens + config.prompt.image_marks
    text_tokens = recorded["tokens"] - image_tokens
    planned = make_plan(config, shape, limits)
    plan = with_text(as_measured(planned, recorded, config, shape), config, shape, text_tokens)
    loaded = [recorded["load_peak_gib"], *[0.0] * (len(limits) - 1)]  # seen on the first GPU alone
    for gpu, *measured in zip(
        plan.gpus, recorded["trained_gib"], recorded["scored_gib"], loaded, strict=True
    ):
        assert gpu.total / GIB == pytest.approx(max(measured), rel=0.05)
        trained = gpu.peaks["training"] / GIB
        # On each card of two as well. Of offloaded layers, one more was measured
        within = 0.05 if plan.offloaded_layers else 0.03
        assert trained == pytest.approx(measured[0], rel=within)
    # A plan of then, which counted logits beside the last layer, offloaded one more
    assert len(plan.offloaded_layers) == pytest.approx(recorded["offloaded_layers"], abs=1)


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
    settings = {"micro_batch": 1, "score_batch": 8, "tta": 1, "use_gradient_checkpointing": True}
    settings |= changes
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


def test_what_a_batch_holds_on_the_first_gpu_while_it_is_on_the_second():
    """Counted by hand: 384 px are 24 x 24 patches and 144 tokens; 106 more tokens of text."""
    batch = batch_of(SHAPE, preset("safe", text_tokens=106), 1)
    pixels = 24 * 24 * (3 * 2 * 16 * 16) * 4  # two frames of three colours, fp32
    stream = 24 * 24 * 1152 * 4  # the tower's
    features = 144 * 2048 * (4 + 3 * 2)  # in fp32, and those of three DeepStack layers in fp16
    embeddings = 250 * 2048 * 3 * 4  # three streams in fp32
    mask = 250 * 250 * (1 + 2)
    assert batch.tokens == 250
    assert held_in_scoring(SHAPE, batch) == pixels + stream + features + embeddings + mask

"""How layers are spread over GPUs, and which are offloaded or skip activation checkpointing."""

import itertools

import pytest

from vqa_utils.planning._spread import layers_of_tower
from vqa_utils.planning.activations import SAVED, input_bytes, saved_bytes
from vqa_utils.planning.batches import Batch, batch_of
from vqa_utils.planning.gpu_plan import RESERVE
from vqa_utils.planning.machine.gpus import T4, gpu_limits
from vqa_utils.planning.placement import EMBEDDINGS, HEAD, NORM, ROTARY, Placement
from vqa_utils.planning.plan import make_plan, resolve_batches
from vqa_utils.planning.shapes import LAYERS, VISION, shape_of
from vqa_utils.presets import preset

GIB = 2**30
SHAPE = shape_of(preset("safe"))
TWO_OF_14 = [int(14e9)] * 2


def planned_of(name="safe", limits=TWO_OF_14, **changes):
    return make_plan(preset(name, **changes), SHAPE, [int(limit) for limit in limits])


def numbers(layers):
    return [int(layer.rpartition(".")[2]) for layer in layers]


@pytest.mark.parametrize(
    "limits",
    [(14e9, 14e9), (12e9, 15e9), (15e9, 12e9), (9e9, 9e9, 9e9), (6e9, 6e9, 14e9, 7e9)],
    ids=str,
)
def test_the_cut_leaves_the_gpus_equally_free_within_a_layer(limits):
    plan = planned_of(limits=limits, use_gradient_checkpointing=True)
    left = [gpu.left for gpu in plan.gpus]
    layer_bytes = 0.34 * GIB  # its weights, and the input that it saves
    assert plan.fits and max(left) - min(left) <= layer_bytes
    layers = [layer for gpu in plan.gpus for layer in gpu.layers]
    assert numbers(layers) == list(range(48))  # each once, in order


def test_the_ends_of_the_model_are_on_the_first_and_last_gpu():
    device_map = planned_of(limits=(6e9, 15e9)).device_map
    deepstack = [f"{LAYERS}.{number}" for number in range(3)]
    assert {device_map[module] for module in (VISION, EMBEDDINGS, ROTARY, *deepstack)} == {0}
    assert device_map[HEAD] == device_map[NORM] == 1


def test_a_tied_head_is_with_the_embeddings():
    config = preset("single_gpu")
    tied = make_plan(config, shape_of(config), [int(3e9)] * 2)
    assert tied.device_map[HEAD] == tied.device_map[EMBEDDINGS] == 0


@pytest.mark.parametrize("name", ["safe", "balanced", "low_memory"])
def test_two_t4_hold_the_30b_and_one_holds_it_by_offloading(name):
    limits = gpu_limits(preset(name), [T4, T4])
    one = limits[:1]
    assert planned_of(name, limits).fits and not planned_of(name, one).fits
    offloading = planned_of(name, one, offload_experts=True)
    assert offloading.fits and 10 < len(offloading.offloaded_layers) < 30
    # Nothing is offloaded if all fits
    assert planned_of(name, limits, offload_experts=True) == planned_of(name, limits)


def test_offloaded_layers_are_spread_over_the_whole_model():
    plan = planned_of(limits=TWO_OF_14[:1], offload_experts=True)
    offloaded = numbers(plan.offloaded_layers)
    gaps = {after - before for before, after in itertools.pairwise(offloaded)}
    assert max(gaps) - min(gaps) <= 1 and offloaded[-1] > 40


def test_offloading_leaves_a_reserve_and_little_more():
    (gpu,) = planned_of(limits=TWO_OF_14[:1], offload_experts=True).gpus
    assert RESERVE * gpu.limit <= gpu.left < 0.08 * gpu.limit


@pytest.mark.parametrize("size", [11.5e9, 10e9, 8.5e9, 7.5e9, 6.1e9])
def test_gpus_of_one_size_offload_alike_and_little_more_than_one_of_twice_the_size(size):
    both = planned_of(limits=(size, size), offload_experts=True)
    first, second = (len(gpu.offloaded_layers) for gpu in both.gpus)
    assert both.fits and abs(first - second) <= 1
    alone = len(planned_of(limits=[2 * size], offload_experts=True).offloaded_layers)
    # The second GPU has a layer at work too, and slots of its own
    assert alone < first + second <= alone + 10


def test_a_small_gpu_leaves_layers_to_the_large_one():
    plan = planned_of(
        "low_memory", (8.5e9, 2.9e9), offload_experts=True, micro_batch=4, score_batch=4
    )
    assert plan.fits and len(plan.offloaded_layers) < 48


def test_offloading_fits_without_the_reserve_if_it_must():
    tight = planned_of(limits=(3.3e9, 3.3e9), offload_experts=True, micro_batch=1, score_batch=1)
    assert tight.fits and not tight.leaves_reserve


def test_offloading_brings_back_the_reserve():
    assert not planned_of(limits=(12e9, 12e9), micro_batch=16).leaves_reserve
    tight = planned_of(limits=(12e9, 12e9), micro_batch=16, offload_experts=True)
    assert tight.leaves_reserve and 0 < len(tight.offloaded_layers) < 6


def test_a_plan_that_does_not_fit_has_the_least_shortfall():
    lacking = planned_of(limits=(3e9, 3e9), offload_experts=True, micro_batch=1, score_batch=1)
    first, second = (-gpu.left for gpu in lacking.gpus)
    assert not lacking.fits and 0 < first < 0.3e9 and abs(first - second) < 0.1e9


def test_no_gpu_is_no_plan_that_fits():
    assert not make_plan(preset("safe"), SHAPE, []).fits


def test_free_memory_lets_the_last_layers_skip_checkpointing():
    plan = planned_of(score_batch=8)
    without = planned_of(score_batch=8, use_gradient_checkpointing=True)
    for gpu, plain in zip(plan.gpus, without.gpus, strict=True):
        count = len(gpu.uncheckpointed_layers)
        assert gpu.modules == plain.modules and not plain.uncheckpointed_layers
        assert 0 < count < len(gpu.layers)
        assert list(gpu.uncheckpointed_layers) == gpu.layers[-count:]


def test_they_fit_beside_the_reserve_and_no_further_layer_would():
    config = resolve_batches(preset("safe", score_batch=8), SHAPE, TWO_OF_14)
    layer_bytes = saved_bytes(SHAPE, config, batch_of(SHAPE, config, 16))
    for gpu in planned_of(score_batch=8).gpus:
        assert gpu.left - layer_bytes < RESERVE * gpu.limit <= gpu.left


def test_the_longest_row_has_to_fit_in_a_pass_of_its_own():
    """8 rows in four orders, 144 tokens of image and 128 + 3 x 80 of text, are 4,096 tokens."""
    usual = planned_of(score_batch=8)
    assert planned_of(score_batch=8, longest_text=4096 - 144) == usual
    longer = planned_of(score_batch=8, longest_text=8000)
    assert longer.fits and len(longer.uncheckpointed_layers) < len(usual.uncheckpointed_layers)
    one_layer = saved_bytes(SHAPE, preset("safe"), Batch(1, 144, 8000))
    kept = [plan.gpus[0].training[SAVED] for plan in (usual, longer)]
    inputs = len(longer.gpus[0].layers) * input_bytes(SHAPE, Batch(1, 144, 8000))
    skipping = len(longer.gpus[0].uncheckpointed_layers)
    assert kept[1] == inputs + skipping * one_layer
    assert not planned_of(score_batch=8, longest_text=100_000).fits


def test_layers_skip_checkpointing_by_the_setting_and_not_beside_offloaded_experts():
    assert len(planned_of(limits=[80e9]).uncheckpointed_layers) == 48
    never = planned_of(limits=[80e9] * 2, use_gradient_checkpointing=False)
    assert len(never.uncheckpointed_layers) == 48
    assert not planned_of(limits=TWO_OF_14[:1], offload_experts=True).uncheckpointed_layers


def test_folds_in_turns_have_a_cut_by_work_where_memory_allows():
    """The vision tower is as much work as several layers, and sets the pace of the first GPU."""
    tower = layers_of_tower(SHAPE, batch_of(SHAPE, preset("safe"), 16))
    assert 7 < tower < 8.5

    def work(plan):
        first, last = (len(gpu.layers) for gpu in plan.gpus)
        return max(first + tower, last)

    settings = {"micro_batch": 16, "accumulation": 1, "score_batch": 16, "folds_at_once": 2}
    roomy = planned_of(limits=[36e9] * 2, **settings)
    assert [len(gpu.layers) for gpu in roomy.gpus] == [20, 28]
    assert roomy.leaves_reserve and not roomy.gives_back
    tight = planned_of(**settings)
    by_memory = planned_of(**{**settings, "folds_at_once": 1})
    assert work(roomy) <= work(tight) <= work(by_memory)
    assert tight.leaves_reserve and tight.gives_back
    layers = [layer for gpu in tight.gpus for layer in gpu.layers]
    assert numbers(layers) == list(range(48))


@pytest.mark.parametrize(
    ("limit", "experts_at_once", "gives_back"),
    [(16e9, 64, False), (14e9, 32, False), (13.5e9, 16, False), (13e9, 64, True)],
)
def test_folds_in_turns_save_memory_in_the_order_of_what_it_costs(
    limit, experts_at_once, gives_back
):
    settings = {"micro_batch": 16, "accumulation": 1, "score_batch": 16, "folds_at_once": 2}
    plan = planned_of(limits=[limit] * 2, cache_features=True, **settings)
    assert (plan.experts_at_once, plan.gives_back) == (experts_at_once, gives_back)
    assert plan.leaves_reserve
    assert [len(gpu.layers) for gpu in plan.gpus] == [24, 24], "no tower, so work is even"
    dense = {gpu.training["dequantised weights"] for gpu in plan.gpus}
    assert dense == {experts_at_once * 3 * 2 * 768 * 2048}


def test_folds_in_turns_on_three_gpus_have_even_work():
    settings = {"micro_batch": 16, "accumulation": 1, "score_batch": 16, "folds_at_once": 3}
    plan = planned_of(limits=[36e9] * 3, **settings)
    first, second, third = (len(gpu.layers) for gpu in plan.gpus)
    assert abs(second - third) <= 2 and first < second - 5


def test_a_fold_alone_has_two_batches_in_flight_where_the_second_has_room():
    settings = {"micro_batch": 16, "accumulation": 1, "folds_at_once": 1}
    small = planned_of(**settings, score_batch=16)
    first, second = small.gpus
    assert small.batches_in_flight == 2
    assert first.held_in_scoring > 2**27 and second.held_in_scoring == 0
    assert planned_of(limits=[36e9], **settings, score_batch=16).batches_in_flight == 1
    # As many rows as fit once, beside the reserve
    rows = 16
    while True:
        plan = planned_of(**settings, score_batch=rows)
        first = plan.gpus[0]
        room = 0.95 * first.limit - first.peaks["scoring"]
        assert plan.batches_in_flight == (2 if room >= first.held_in_scoring else 1)
        if plan.batches_in_flight == 1:
            break
        rows += 4
    assert rows > 32
    offloading = planned_of(limits=[6e9] * 2, offload_experts=True, score_batch=4)
    assert offloading.offloaded_layers and offloading.batches_in_flight == 1


@pytest.mark.parametrize(
    ("side", "crops", "score_batch", "tta"),
    [(0, 0, 16, 1), (640, 0, 16, 4), (640, 0, 1, 2), (1024, 0, 2, 4), (0, 2, 16, 4), (0, 3, 2, 1)],
)
def test_a_second_look_is_planned_in_passes_of_no_more_tokens(side, crops, score_batch, tta):
    settings = {"micro_batch": 2, "accumulation": 8, "score_batch": score_batch, "tta": tta}
    looks = {"second_look": 0.1, "second_look_side": side, "second_look_crops": crops}
    config = preset("safe", **settings, **looks)
    first, *others = Placement(config, SHAPE).scoring
    looks = [batch for batch in others if batch.rows > 1 or batch.image_tokens > first.image_tokens]
    for look in looks:
        alone = batch_of(SHAPE, preset("safe", image_side=side or 384, crops=crops), 1)
        assert (look.image_tokens, look.images) == (alone.image_tokens, 1 + crops**2)
        assert look.tokens <= first.tokens or look.rows == 1
    assert looks

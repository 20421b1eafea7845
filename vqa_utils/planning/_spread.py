"""Spread a model's decoder layers over GPUs, for a run with known batches."""

import bisect
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vqa_utils.config import Config
from vqa_utils.planning.batches import Batch
from vqa_utils.planning.gpu_plan import RESERVE, GpuPlan, Plan
from vqa_utils.planning.memory import FEWER_EXPERTS_AT_ONCE, Bytes
from vqa_utils.planning.placement import Placement
from vqa_utils.planning.shapes import VISION, ModelShape, is_matrix

# A decoder layer's work in forwards: one in scoring, nearly three in training; runs have both
PASSES = 2
# Ways of folds in turns to need less memory, each slower than the one before; the first costs nothing
SAVINGS: tuple[dict[str, Any], ...] = (
    {},
    *({"experts_at_once": count} for count in FEWER_EXPERTS_AT_ONCE),
    {"gives_back": True},
)
# Plans a GPU with these modules and this limit: `Placement.with_offloading`, or without
PlanGpu = Callable[[Sequence[str], int], GpuPlan]
# Plans GPU `number` with the decoder layers from `start` up to `end`
PlanShare = Callable[[int, int, int], GpuPlan]


def spread(config: Config, shape: ModelShape, limits: Sequence[int]) -> Plan:
    """Place a model evenly, by free memory or, for folds in turns, by work.

    Experts are offloaded only if the reserve would not stay free.

    Args:
        config: settings with a number for each batch.
        shape: the model's.
        limits: the most bytes for each GPU.

    Returns:
        The plan; some layers may skip activation checkpointing. It may not fit.
    """
    for saving in SAVINGS if takes_turns(config, limits) else SAVINGS[:1]:
        placement = Placement(config, shape, **saving)
        plan = Plan(tuple(spread_evenly(placement.without_offloading, placement, limits)))
        if plan.leaves_reserve:
            break
    if takes_turns(config, limits):
        gpus = spread_work(placement, limits)
        plan = Plan(tuple(gpus)) if gpus else plan
    if config.offload_experts and not plan.leaves_reserve:
        gpus = spread_offloaded(placement, limits)
        if not gpus:
            gpus = spread_evenly(placement.with_offloading, placement, limits)
        plan = Plan(tuple(gpus))
    if config.use_gradient_checkpointing == "auto":
        plan = without_needless_checkpointing(plan, config, shape)
    return plan


def takes_turns(config: Config, limits: Sequence[int]) -> bool:
    """Tell whether folds take turns on these GPUs. Giving memory back takes time in each."""
    return config.sharing_folds > 1 and len(limits) > 1


def spread_work(placement: Placement, limits: Sequence[int]) -> list[GpuPlan]:
    """Minimise the work on the busiest GPU: in turns, it sets the pace of all.

    Returns:
        The GPUs with all decoder layers; [] if no spread leaves the reserve free.
    """
    plan_share = _shares(placement.without_offloading, placement, limits)
    tower = layers_of_tower(placement.shape, placement.training[0])

    def work(gpu: GpuPlan) -> float:
        return len(gpu.layers) + (tower if VISION in gpu.modules else 0)

    def within(most: float) -> list[GpuPlan] | None:
        def accepts(gpu: GpuPlan) -> bool:
            return gpu.left >= RESERVE * gpu.limit and work(gpu) <= most

        return _fill(plan_share, accepts, placement, len(limits))

    # The work of a GPU is a number of layers, on the first with the tower
    layers = range(len(placement.layers) + 1)
    amounts = sorted([*layers, *(count + tower for count in layers)])
    least = bisect.bisect_left(amounts, True, key=lambda most: within(most) is not None)
    if least == len(amounts):
        return []
    return within(amounts[least]) or []


def layers_of_tower(shape: ModelShape, batch: Batch) -> float:
    """Compute how many decoder layers take as long as the vision tower, by their products.

    The tower runs once, and a layer `PASSES` times; 0 where pictures come as features.
    """
    if batch.has_features:
        return 0.0
    tower = 0.0  # multiplications for a patch
    layer = 0.0  # for a token
    first_layer = f"{shape.layer_names[0]}."
    for name, size in shape.parameters.items():
        count = math.prod(size)
        if name.startswith(f"{VISION}.blocks.") and len(size) > 1:
            tower += count
        elif name.startswith(first_layer) and is_matrix(name):
            is_stack_of_experts = len(size) == 3
            layer += count * shape.experts_per_token / size[0] if is_stack_of_experts else count
    patches = batch.image_tokens * shape.pixels_per_token / shape.patch_px**2
    tokens = batch.image_tokens + batch.text_tokens
    return (tower * patches) / (PASSES * layer * tokens)


def spread_evenly(plan_gpu: PlanGpu, placement: Placement, limits: Sequence[int]) -> list[GpuPlan]:
    """Maximise free memory on the fullest GPU; if nothing fits, minimise the shortfall.

    Args:
        plan_gpu: `Placement.without_offloading` or `Placement.with_offloading`.
        placement: the model's.
        limits: the most bytes for each GPU.

    Returns:
        The GPUs with all decoder layers; [] without a GPU.
    """
    plan_share = _shares(plan_gpu, placement, limits)

    def leaving(free: int) -> list[GpuPlan] | None:
        return _fill(plan_share, lambda gpu: gpu.left >= free, placement, len(limits))

    # Binary search: as much as `low` can be left free on every GPU, as much as `high` cannot
    weights = sum(_total(groups) for groups in placement.weights.values())
    low = -10 * weights
    while limits and leaving(low) is None:  # huge batches or pictures lack more
        low *= 2
    high = max(limits, default=0)
    while high - low > 1:  # to the byte
        middle = (low + high) // 2
        if leaving(middle):
            low = middle
        else:
            high = middle
    return leaving(low) or []


def spread_offloaded(placement: Placement, limits: Sequence[int]) -> list[GpuPlan]:
    """Minimise the largest number of offloaded layers on a GPU.

    A spread with the reserve free on each GPU comes first, even if one without it offloads fewer.

    Returns:
        The GPUs with all decoder layers; [] if nothing fits.
    """
    for reserve in (RESERVE, 0):
        gpus = _fewest_offloaded(placement, limits, reserve)
        if gpus:
            return gpus
    return []


def _fewest_offloaded(
    placement: Placement, limits: Sequence[int], reserve: float
) -> list[GpuPlan] | None:
    plan_gpu = functools.partial(placement.with_offloading, reserve=reserve)
    plan_share = _shares(plan_gpu, placement, limits)

    def offloading(most: int) -> list[GpuPlan] | None:
        def accepts(gpu: GpuPlan) -> bool:
            return gpu.left >= reserve * gpu.limit and len(gpu.offloaded_layers) <= most

        return _fill(plan_share, accepts, placement, len(limits))

    # Binary search: the more a GPU may offload, the sooner all layers find a place
    numbers = range(len(placement.layers) + 1)
    # Past the last number if nothing fits; `offloading` gives None for it too
    fewest = bisect.bisect_left(numbers, True, key=lambda most: offloading(most) is not None)
    return offloading(fewest)


def _shares(plan_gpu: PlanGpu, placement: Placement, limits: Sequence[int]) -> PlanShare:
    """Make a function to plan a GPU's share; a search asks for the same share many times."""
    last = len(limits) - 1

    @functools.cache
    def plan_share(number: int, start: int, end: int) -> GpuPlan:
        modules: list[str] = []
        if number == 0:
            modules += placement.first
        if number == last:
            modules += placement.last
        modules += placement.layers[start:end]
        return plan_gpu(modules, limits[number])

    return plan_share


def _fill(
    plan_share: PlanShare,
    accepts: Callable[[GpuPlan], bool],
    placement: Placement,
    gpu_count: int,
) -> list[GpuPlan] | None:
    """Give each GPU in turn as many layers as are acceptable; None if some layers find no place."""
    gpus: list[GpuPlan] = []
    start = 0
    for number in range(gpu_count):
        # DeepStack's layers are on the first GPU
        fewest = placement.shape.deepstack_layers if number == 0 else 0
        ends = range(len(placement.layers), start + fewest - 1, -1)
        end = next((end for end in ends if accepts(plan_share(number, start, end))), None)
        if end is None:
            return None
        gpus.append(plan_share(number, start, end))
        start = end
    return gpus if start == len(placement.layers) else None


def without_needless_checkpointing(plan: Plan, config: Config, shape: ModelShape) -> Plan:
    """Let as many layers skip activation checkpointing as fit beside the reserve.

    Without it, a layer saves more for the backward, and is not recomputed there. A GPU with
    offloaded experts checkpoints all its layers: its memory is for experts.
    """
    placement = Placement(
        config, shape, gives_back=plan.gives_back, experts_at_once=plan.experts_at_once
    )
    return Plan(tuple(_skipping_checkpoints(gpu, placement) for gpu in plan.gpus))


def _skipping_checkpoints(gpu: GpuPlan, placement: Placement) -> GpuPlan:
    """Let a GPU's last layers skip checkpointing: the backward frees them first."""
    if gpu.offloaded_layers:
        return gpu
    most = (1 - RESERVE) * gpu.limit
    for first in range(len(gpu.layers)):  # from all layers skipping to the last alone
        skipping = replace(gpu, uncheckpointed_layers=tuple(gpu.layers[first:]))
        counted = placement.recounted(skipping)
        # What one saves stands beside the scoring of another, if that one gives memory back
        highest = counted.total if counted.gives_back else counted.peaks["training"]
        if highest <= most:
            return counted
    return gpu


def _total(sizes: Bytes) -> int:
    return sum(sizes.values())

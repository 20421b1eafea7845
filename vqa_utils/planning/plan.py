"""The memory plan: which module lies on which GPU and what that takes, before anything is loaded. Free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vqa_utils.config import Config
from vqa_utils.planning import memory
from vqa_utils.planning._hub import SourceError
from vqa_utils.planning.gpus import T4, Gpu, find_gpus, gpu_limits
from vqa_utils.planning.placement import (
    RESERVE,
    GpuPlan,
    Placement,
    spread_evenly,
    spread_offloaded,
)
from vqa_utils.planning.shapes import LAYERS, ModelShape, ShapeError, shape_of

SCORE_BATCH = 8  # rows scored at a time, until a plan says how many


@dataclass(frozen=True)
class Plan:
    """Where a model goes, and whether it fits."""

    gpus: tuple[GpuPlan, ...]

    @property
    def fits(self) -> bool:
        return bool(self.gpus) and all(gpu.left >= 0 for gpu in self.gpus)

    @property
    def leaves_reserve(self) -> bool:
        """Whether each GPU has `RESERVE` of its limit left."""
        return all(gpu.left >= RESERVE * gpu.limit for gpu in self.gpus)

    @property
    def device_map(self) -> dict[str, int]:
        """Each module's GPU, as `from_pretrained` takes it."""
        return {module: number for number, gpu in enumerate(self.gpus) for module in gpu.modules}

    @property
    def offloaded_layers(self) -> list[str]:
        """On all GPUs."""
        return [layer for gpu in self.gpus for layer in gpu.offloaded_layers]

    @property
    def uncheckpointed_layers(self) -> list[str]:
        """On all GPUs."""
        return [layer for gpu in self.gpus for layer in gpu.uncheckpointed_layers]


def make_plan(
    config: Config, shape: ModelShape, limits: Sequence[int], text_tokens: int = memory.TEXT_TOKENS
) -> Plan:
    """Spread the decoder layers so that what is left free on each GPU is equal, within a layer.

    The vision tower and the embeddings are on the first GPU (a tied head too), with the first layers, since DeepStack adds
    features of the tower to them; the last norm and the head are on the last. With `offload_experts`, where that would not leave
    the reserve, so that the GPUs stream few layers' experts and like numbers of them.

    Args:
        limits: what each GPU may hold, in bytes.
        text_tokens: of a row, beside those of its image.
    """
    config = resolve_batches(config, shape, limits)
    placement = Placement(config, shape, text_tokens)
    plan = Plan(tuple(spread_evenly(placement.whole, placement, limits)))
    if config.offload_experts and not plan.leaves_reserve:  # where nothing fits, what lacks least
        plan = Plan(
            tuple(
                spread_offloaded(placement, limits)
                or spread_evenly(placement.offloading, placement, limits)
            )
        )
    return without_needless_checkpointing(plan, config, shape, text_tokens)


def without_needless_checkpointing(
    plan: Plan, config: Config, shape: ModelShape, text_tokens: int
) -> Plan:
    """Under "auto", memory that training would leave free keeps layers whole for the backward.

    As many as fit beside the reserve with rows as long as `LONG_TEXT_TOKENS`; where experts are streamed, none.
    """
    if config.use_gradient_checkpointing != "auto":
        return plan
    gpus, longest = [], Placement(config, shape, max(text_tokens, memory.LONG_TEXT_TOKENS))
    for gpu in plan.gpus:
        layers = tuple(
            module
            for module in gpu.modules
            if module.startswith(LAYERS) and not gpu.offloaded_layers
        )
        choices = (
            replace(gpu, uncheckpointed_layers=layers[first:]) for first in range(len(layers))
        )  # the last are done with first
        limit = (1 - RESERVE) * gpu.limit
        gpus.append(
            next(
                (keeps for keeps in choices if longest.again(keeps).peaks["training"] <= limit), gpu
            )
        )
    return with_text(Plan(tuple(gpus)), config, shape, text_tokens)


def with_text(plan: Plan, config: Config, shape: ModelShape, text_tokens: int) -> Plan:
    """The same placement, for rows of another length."""
    return Plan(tuple(map(Placement(config, shape, text_tokens).again, plan.gpus)))


def largest_micro_batch(config: Config, shape: ModelShape, limits: Sequence[int]) -> int:
    """The largest divisor of the effective batch that fits as a micro-batch; 0 where not even one row does.

    More than one row leave `RESERVE` of each GPU free.
    """
    config = config if config.is_resolved else replace(config, score_batch=SCORE_BATCH)
    for rows in range(config.effective_batch, 0, -1):
        if config.effective_batch % rows == 0:
            plan = make_plan(config.with_micro_batch(rows), shape, limits)
            if plan.fits and (rows == 1 or plan.leaves_reserve):
                return rows
    return 0


def largest_score_batch(config: Config, shape: ModelShape, limits: Sequence[int]) -> int:
    """The most rows that can be scored at once in the memory that training takes on each GPU: a power of two, at most 128."""
    for rows in (128, 64, 32, 16, 8, 4, 2):
        plan = make_plan(replace(config, score_batch=rows), shape, limits)
        if all(gpu.total == gpu.peaks["training"] for gpu in plan.gpus):
            return rows
    return 1


def resolve_batches(config: Config, shape: ModelShape, limits: Sequence[int]) -> Config:
    """The settings with a number for each batch that is "auto"; one row where nothing fits."""
    if config.micro_batch == "auto":
        config = config.with_micro_batch(max(1, largest_micro_batch(config, shape, limits)))
    if config.score_batch == "auto":
        config = replace(config, score_batch=largest_score_batch(config, shape, limits))
    return config


def plan_for(config: Config, gpus: Sequence[Gpu]) -> Plan:
    """The memory plan of the settings on these GPUs."""
    return make_plan(config, shape_of(config), gpu_limits(config, gpus))


def memory_plan(config: Config, gpus: Sequence[Gpu] | None = None) -> Plan | None:
    """Plan the model on this machine's GPUs; None on a CPU, or where accelerate places the model.

    Args:
        gpus: those that nvidia-smi lists, unless they are given.

    Raises:
        MachineError: the model does not fit.
    """
    from vqa_utils.planning.machine_check import check_machine  # which imports this module

    gpus = find_gpus() if gpus is None else gpus
    if not gpus or config.device_map != "plan":
        return None
    check_machine(config, gpus)
    return plan_for(config, gpus)


def fold_gpus(config: Config, folds: int, gpus: Sequence[Gpu]) -> list[int]:
    """The places in `gpus` of those that hold the model alone, where that many folds may run side by side on them."""
    if folds < 2 or len(gpus) < 2 or len(config.max_memory) > 1 or config.device_map != "plan":
        return []
    return [place for place, gpu in enumerate(gpus) if plan_for(config, [gpu]).fits]


def resolve_for_machine(config: Config, gpus: Sequence[Gpu]) -> Config:
    """The settings with a number for each batch that is "auto": what the plan allows on these GPUs, or on T4 where there is none.

    One row (and eight scored) where nothing plans: accelerate places the model, or it is none that the plan knows (`check_run`
    says so).
    """
    if config.is_resolved:
        return config
    try:
        shape = shape_of(config) if config.device_map == "plan" else None
    except (SourceError, ShapeError):
        shape = None
    if shape is None:
        config = config if config.micro_batch != "auto" else config.with_micro_batch(1)
        return config if config.is_resolved else replace(config, score_batch=SCORE_BATCH)
    return resolve_batches(
        config, shape, gpu_limits(config, gpus or [T4] * max(1, len(config.max_memory)))
    )

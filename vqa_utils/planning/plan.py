"""Plan a run's memory before anything is loaded: batches, each module's GPU, all peaks.

The plan that refuses a run is the plan that loads it: `memory_plan`.
"""

from collections.abc import Sequence
from dataclasses import replace

from vqa_utils.config import DEMO_MODEL_NAME, Config
from vqa_utils.planning._spread import spread
from vqa_utils.planning.gpu_plan import Plan
from vqa_utils.planning.machine.gpus import (
    T4,
    Gpu,
    MachineError,
    check_torch,
    describe_gpus,
    find_gpus,
    gpu_limits,
)
from vqa_utils.planning.shapes import ModelShape, ShapeError, shape_of
from vqa_utils.planning.source.check import SourceError
from vqa_utils.presets import PRESETS, preset
from vqa_utils.setting_types import GIB

# Rows to score at a time before a plan has said how many
SCORE_BATCH = 8
# Numbers of rows to score at a time, the largest first
SCORE_BATCHES = (128, 64, 32, 16, 8, 4, 2)


def memory_plan(config: Config, gpus: Sequence[Gpu] | None = None) -> Plan | None:
    """Plan the run on this machine's GPUs.

    Args:
        config: the settings of the run.
        gpus: the GPUs to plan for; by default, those of `find_gpus`.

    Returns:
        The plan to load with. None on a machine without a GPU, or if `device_map` leaves the
        placement to accelerate.

    Raises:
        MachineError: the model does not fit, or this torch is too slow for it.
    """
    if gpus is None:
        gpus = find_gpus()
    if not gpus:
        return None
    is_demo = config.model == DEMO_MODEL_NAME  # it is small, and fits any GPU
    if not is_demo:
        check_torch()
    if config.device_map != "plan":
        return None
    plan = plan_for(config, gpus)
    if not plan.fits and not is_demo:
        raise MachineError(refusal(config, gpus, describe_need(plan)))
    return plan


def plan_for(config: Config, gpus: Sequence[Gpu]) -> Plan:
    """Plan the run on these GPUs; it may not fit."""
    return make_plan(config, shape_of(config), gpu_limits(config, gpus))


def make_plan(config: Config, shape: ModelShape, limits: Sequence[int]) -> Plan:
    """Spread the decoder layers: all GPUs have the same memory free, within a layer.

    Folds that take turns get even work instead, as far as the reserve stays free.

    With `offload_experts`, experts go to host memory only if the reserve would not stay free. Then
    the GPUs offload few layers' experts, and like numbers of them.

    Args:
        config: the settings of the run; "auto" batches are resolved.
        shape: the model's.
        limits: the most bytes for each GPU.
    """
    return spread(resolve_batches(config, shape, limits), shape, limits)


def resolve_batches(config: Config, shape: ModelShape, limits: Sequence[int]) -> Config:
    """Replace each "auto" batch by the number of rows to fit the plan; at least one."""
    if config.micro_batch == "auto":
        rows = largest_micro_batch(config, shape, limits)
        config = config.with_micro_batch(max(1, rows))
    if config.score_batch == "auto":
        rows = largest_score_batch(config, shape, limits)
        config = replace(config, score_batch=rows)
    return config


def largest_micro_batch(config: Config, shape: ModelShape, limits: Sequence[int]) -> int:
    """Find the largest micro-batch to fit: a divisor of the effective batch.

    More than one row must leave `RESERVE` of each GPU free.

    Returns:
        Rows per pass; 0 if not even one row fits.
    """
    if not config.is_resolved:
        config = replace(config, score_batch=SCORE_BATCH)
    for rows in range(config.effective_batch, 0, -1):
        if config.effective_batch % rows:
            continue
        plan = spread(config.with_micro_batch(rows), shape, limits)
        if plan.fits and (rows == 1 or plan.leaves_reserve):
            return rows
    return 0


def largest_score_batch(config: Config, shape: ModelShape, limits: Sequence[int]) -> int:
    """Find the most rows, up to 128, to score in the memory of training or loading on each GPU.

    Args:
        config: settings with a number for the micro-batch.
        shape: the model's.
        limits: the most bytes for each GPU.

    Returns:
        Rows per pass, a power of two.
    """
    for rows in SCORE_BATCHES:
        plan = spread(replace(config, score_batch=rows), shape, limits)
        if all(gpu.total == gpu.before_scoring for gpu in plan.gpus):
            return rows
    return 1


def resolve_for_machine(config: Config, gpus: Sequence[Gpu]) -> Config:
    """Replace each "auto" batch by the number of rows to fit these GPUs.

    Without a GPU, the rows fit T4. Without a plan (accelerate places the model, or the plan does
    not know it: `check_run` says so), it is one row, and eight to score.
    """
    if config.is_resolved:
        return config
    shape = _shape_to_plan(config)
    if shape:
        machine = gpus or assumed_gpus(config)
        return resolve_batches(config, shape, gpu_limits(config, machine))
    if config.micro_batch == "auto":
        config = config.with_micro_batch(1)
    if config.score_batch == "auto":
        config = replace(config, score_batch=SCORE_BATCH)
    return config


def is_planned(config: Config) -> bool:
    """Tell whether the memory plan places the model, and knows its family."""
    return _shape_to_plan(config) is not None


def _shape_to_plan(config: Config) -> ModelShape | None:
    """Read the model's shape; None if no plan can be made of it."""
    if config.device_map != "plan":
        return None
    try:
        return shape_of(config)
    except (SourceError, ShapeError):
        return None


def assumed_gpus(config: Config) -> list[Gpu]:
    """Name the GPUs to plan for on a machine without any: as many T4 as `max_memory` has limits."""
    return [T4] * max(1, len(config.max_memory))


def shares_base(config: Config, folds: int, gpus: Sequence[Gpu]) -> bool:
    """Tell whether several folds of a run can be at work around one base on these GPUs."""
    plan = plan_for(config, gpus) if gpus else None
    has_own_gpus = len(fold_gpus(config, folds, gpus)) > 1
    return folds > 1 and can_lend(config, plan) and not has_own_gpus


def can_lend(config: Config, plan: Plan | None) -> bool:
    """Tell whether a run's folds can share one base in memory, packed and nowhere offloaded."""
    is_packed = config.quantization == "nf4" and config.device_map == "plan"
    return is_packed and (plan is None or not plan.offloaded_layers)


def fold_gpus(config: Config, folds: int, gpus: Sequence[Gpu]) -> list[int]:
    """Find the GPUs large enough for the whole model, to run folds side by side.

    Returns:
        Their places in `gpus`; [] for one fold, one GPU, or settings for several GPUs.
    """
    if folds < 2 or len(gpus) < 2 or len(config.max_memory) > 1 or config.device_map != "plan":
        return []
    return [place for place, gpu in enumerate(gpus) if plan_for(config, [gpu]).fits]


def describe_need(plan: Plan) -> str:
    """Say how much memory a plan takes on all its GPUs: "17.5 GiB of GPU memory"."""
    return f"{sum(gpu.total for gpu in plan.gpus) / GIB:.1f} GiB of GPU memory"


def refusal(config: Config, gpus: Sequence[Gpu], need: str) -> str:
    """Say how much the settings need and the machine has; name the presets for it."""
    limit = ""
    if config.max_memory and gpus:
        limit = f" within max_memory={','.join(config.max_memory)}"
    texts = {
        name: getattr(config, name) for name in ("text_tokens", "longest_text", "longest_test")
    }
    working = [name for name in PRESETS if _works(preset(name, **texts), gpus)]
    hints = [f"presets that work here: {', '.join(working)} (--preset {working[0]})"]
    longest = max(config.trained_text, config.scored_text)
    usual = replace(config, longest_text=config.usual_text, longest_test=config.usual_text)
    if gpus and longest > config.usual_text and plan_for(usual, gpus).fits:
        hints.insert(0, f"the longest row alone takes {longest:,} tokens of text: shorten it")
    elif config.sharing_folds > 1:
        hints.insert(0, "--set folds_at_once=1 takes one fold at a time")
    elif gpus and not config.offload_experts and shape_of(config).experts:
        hints.append(
            "--set offload_experts=true offloads experts to host memory: slow, and it works"
        )
    return (
        f"preset {config.preset} ({config.model}): expected {need}{limit}, "
        f"found {describe_gpus(gpus)}; {'; '.join(hints)}"
    )


def _works(config: Config, gpus: Sequence[Gpu]) -> bool:
    """Tell if a preset works on these GPUs; the demo works without any."""
    return config.preset == "demo" or (bool(gpus) and plan_for(config, gpus).fits)

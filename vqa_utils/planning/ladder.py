"""After an out-of-memory error: the next rung, a change of the settings that saves memory where it ran out.

The order is the field's advice: first what costs time alone, then pixels and rank, then what is slow. The memory plan says
what a rung saves on the GPU that ran out, and one that saves nothing there is passed over.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from vqa_utils.artifacts.fold_settings import Changes, Rung
from vqa_utils.config import NOT_OF_THE_ADAPTER, Config
from vqa_utils.errors import VqaError
from vqa_utils.setting_types import size_in_bytes

SMALL_SIDE, SMALL_RANK = 320, 4
SMALL_LIMIT, STEP = 12 * 10**9, 2 * 10**9  # bytes; a GPU's limit is lowered by a step, 14GB -> 12GB
GIB = 2**30
ONE_PHASE = {
    "use_gradient_checkpointing": "training",
    "micro_batch": "training",
    "score_batch": "scoring",
}  # elsewhere these only move layers about


class LadderError(VqaError):
    """No rung is left."""


def next_rung(
    config: Config,
    gpu: int,
    phase: str,
    peak: Callable[[Config], int],
    *,
    trains: bool,
    experts: bool,
) -> Rung:
    """The first change that saves memory where it ran out.

    Args:
        config: the settings that ran out of memory.
        gpu: the GPU's number.
        phase: what was going on there: "training", "scoring" or "loading".
        peak: the planned bytes of that GPU in that phase, of any settings.
        trains: False where an adapter is only used, so that its own settings have to stay.
        experts: whether the model has some.

    Raises:
        LadderError: nothing saves anything any more.
    """
    passed_over = []
    for name, after in _changes(config, gpu, peak(config), experts=experts):
        if not trains and not set(after) <= set(NOT_OF_THE_ADAPTER):
            continue
        saves = peak(config) - peak(replace(config, **after))
        if saves > 0 and phase == ONE_PHASE.get(next(iter(after)), phase):
            before = {key: getattr(config, key) for key in after}
            return Rung(name, before, after, gpu, phase, saves / GIB, tuple(passed_over))
        passed_over.append(name)
    raise LadderError(
        f"GPU {gpu} ran out of memory in {phase}, and nothing is left that would save some there (looked at: "
        f"{', '.join(passed_over) or 'nothing'}); take a smaller model (--preset single_gpu), or a larger GPU"
    )


def _changes(
    config: Config, gpu: int, peak: int, *, experts: bool
) -> Iterator[tuple[str, Changes]]:
    """Every rung from here, in its order."""
    if config.use_gradient_checkpointing in ("auto", False):
        yield "every layer computed again in the backward", {"use_gradient_checkpointing": True}
    if config.micro_batch > 1:
        rows = next(
            rows
            for rows in range(config.micro_batch // 2, 0, -1)
            if config.effective_batch % rows == 0
        )
        name = f"micro-batch {config.micro_batch} -> {rows}"
        yield name, {"micro_batch": rows, "accumulation": config.effective_batch // rows}
    if config.score_batch > 1:
        yield (
            f"scored batch {config.score_batch} -> {config.score_batch // 2}",
            {"score_batch": config.score_batch // 2},
        )
    if config.image_side > SMALL_SIDE:
        yield f"image side {config.image_side} -> {SMALL_SIDE}", {"image_side": SMALL_SIDE}
    if config.lora_r > SMALL_RANK:
        alpha = max(1, config.lora_alpha * SMALL_RANK // config.lora_r)
        yield f"LoRA r {config.lora_r} -> {SMALL_RANK}", {"lora_r": SMALL_RANK, "lora_alpha": alpha}
    if len(config.max_memory) > 1 and size_in_bytes(config.max_memory[gpu]) > SMALL_LIMIT:
        limit = size_in_bytes(config.max_memory[gpu])
        lower = max(SMALL_LIMIT, limit - STEP)
        yield f"max memory of GPU {gpu} {_gb(limit)} -> {_gb(lower)}", _limit(config, gpu, lower)
    if not config.use_cpu_offload:
        yield "optimizer state in host memory", {"use_cpu_offload": True}
    if experts and not config.offload_experts:
        lower = (
            _limit(config, gpu, peak - STEP) if config.max_memory else {}
        )  # so that the plan has something to stream
        yield "experts streamed from host memory", {"offload_experts": True, **lower}


def _limit(config: Config, gpu: int, size: int) -> Changes:
    return {
        "max_memory": tuple(
            _gb(size) if number == gpu else other for number, other in enumerate(config.max_memory)
        )
    }


def _gb(size: int) -> str:
    return f"{math.floor(size / 10**8) / 10:g}GB"

"""Choose the next rung after an out-of-memory error: a memory-saving change of settings.

The order is the field's advice: first changes at the cost of time only, then pixels and rank, then
slow ones. The memory plan says how much a rung saves on the full GPU. A rung without any saving
there is passed over.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from vqa_utils.artifacts.fold_settings import Changes, Rung
from vqa_utils.config import NOT_OF_THE_ADAPTER, Config
from vqa_utils.errors import VqaError
from vqa_utils.presets import preset
from vqa_utils.setting_types import GIB, size_in_bytes

SMALL = preset("low_memory")  # images, ranks and limits of a GPU are not made smaller than here
SMALL_LIMIT = size_in_bytes(SMALL.max_memory[0])
LIMIT_STEP = 2 * 10**9  # bytes by which a rung lowers a GPU's limit: 14GB -> 12GB
# The phase in which a setting saves memory; in the others it only moves layers between the GPUs
ONE_PHASE = {
    "use_gradient_checkpointing": "training",
    "micro_batch": "training",
    "score_batch": "scoring",
}


class LadderError(VqaError):
    """No rung is left."""


class _Change(NamedTuple):
    name: str
    after: Changes


def next_rung(
    config: Config,
    gpu: int,
    phase: str,
    peak: Callable[[Config], int],
    *,
    trains: bool,
    experts: bool,
) -> Rung:
    """Find the first change that saves memory on the full GPU.

    Args:
        config: the settings of the failed notebook, with both batches as numbers.
        gpu: the GPU's number.
        phase: of the failure: "training", "scoring" or "loading".
        peak: the planned bytes of that GPU in that phase, from any settings.
        trains: False if an adapter is only used; its own settings have to stay then.
        experts: whether the model has experts.

    Raises:
        LadderError: no change is left to save memory.
    """
    bytes_now = peak(config)
    passed_over: list[str] = []
    for name, after in _changes(config, gpu, bytes_now, experts=experts):
        changes_adapter = not set(after) <= set(NOT_OF_THE_ADAPTER)
        if changes_adapter and not trains:
            continue
        saved_bytes = bytes_now - peak(replace(config, **after))
        # all settings of one change belong to one phase: the first one tells it
        saves_in = ONE_PHASE.get(next(iter(after)), phase)
        if saved_bytes > 0 and saves_in == phase:
            before = {key: getattr(config, key) for key in after}
            return Rung(name, before, after, gpu, phase, saved_bytes / GIB, tuple(passed_over))
        passed_over.append(name)
    raise LadderError(
        f"GPU {gpu} ran out of memory in {phase}, and nothing is left that would save some there "
        f"(looked at: {', '.join(passed_over) or 'nothing'}); take a smaller model "
        "(--preset single_gpu), or a larger GPU"
    )


def _changes(config: Config, gpu: int, peak: int, *, experts: bool) -> Iterator[_Change]:
    """Every rung from these settings on, in the ladder's order."""
    yield from _costing_time(config)
    yield from _costing_accuracy(config)
    yield from _moving_to_host(config, gpu, peak, experts=experts)


def _costing_time(config: Config) -> Iterator[_Change]:
    if config.use_gradient_checkpointing is not True:
        yield _Change(
            "activation checkpointing in every layer", {"use_gradient_checkpointing": True}
        )
    rows = config.micro_batch_rows
    if rows > 1:
        fewer = _half_micro_batch(rows, config.effective_batch)
        accumulation = config.effective_batch // fewer  # a step has as many rows as before
        yield _Change(
            f"micro-batch {rows} -> {fewer}", {"micro_batch": fewer, "accumulation": accumulation}
        )
    scored = config.score_batch_rows
    if scored > 1:
        yield _Change(f"scored batch {scored} -> {scored // 2}", {"score_batch": scored // 2})


def _costing_accuracy(config: Config) -> Iterator[_Change]:
    if config.crops:
        yield _Change(f"crops {config.crops} -> 0", {"crops": 0})
    if config.image_side > SMALL.image_side:
        name = f"image side {config.image_side} -> {SMALL.image_side}"
        yield _Change(name, {"image_side": SMALL.image_side})
    if config.lora_r > SMALL.lora_r:
        alpha = max(1, config.lora_alpha * SMALL.lora_r // config.lora_r)  # at the same scale
        yield _Change(
            f"LoRA r {config.lora_r} -> {SMALL.lora_r}",
            {"lora_r": SMALL.lora_r, "lora_alpha": alpha},
        )


def _moving_to_host(config: Config, gpu: int, peak: int, *, experts: bool) -> Iterator[_Change]:
    """Layers to another GPU, then optimizer state and experts to the host's memory."""
    # A single GPU has no other to give layers to
    if len(config.max_memory) > 1 and gpu < len(config.max_memory):
        limit = size_in_bytes(config.max_memory[gpu])
        lower_limit = max(SMALL_LIMIT, limit - LIMIT_STEP)
        if limit > SMALL_LIMIT:
            name = f"max memory of GPU {gpu} {_gb(limit)} -> {_gb(lower_limit)}"
            yield _Change(name, _with_limit(config, gpu, lower_limit))
    if not config.use_cpu_offload:
        yield _Change("optimizer state in host memory", {"use_cpu_offload": True})
    if experts and not config.offload_experts:
        after: Changes = {"offload_experts": True}
        if config.max_memory:
            # below the peak of now, so that the plan does offload some experts
            after |= _with_limit(config, gpu, peak - LIMIT_STEP)
        yield _Change("experts offloaded to host memory", after)


def _half_micro_batch(rows: int, effective_batch: int) -> int:
    """The largest divisor of the rows per step, at most half of `rows`."""
    for fewer in range(rows // 2, 1, -1):
        if effective_batch % fewer == 0:
            return fewer
    return 1


def _with_limit(config: Config, gpu: int, size: int) -> Changes:
    """`max_memory` with another limit of one GPU."""
    limits = list(config.max_memory)
    if gpu < len(limits):  # CUDA may count GPUs that the settings leave out
        limits[gpu] = _gb(size)
    return {"max_memory": tuple(limits)}


def _gb(size: int) -> str:
    """Bytes as a setting, rounded down to 0.1 GB: "11.9GB"."""
    return f"{math.floor(size / 10**8) / 10:g}GB"

"""The time of a step on this machine (wall, busy, kernels, memory), and the rates of its GPU."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import BatchFeature

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
GIB = 2**30
TOP_KERNELS = 40  # they hold all but a few percent of a step's busy time
NAME_LENGTH = 90  # of a kernel; the rest of a name are template arguments

Step = Callable[[BatchFeature], None]


def measured(step: Step, batches: Sequence[BatchFeature], rows: int) -> dict[str, Any]:
    """Time the second half of the batches; the first half is the warm-up, and the last is profiled.

    Each step has a batch of its own: its experts have other loads, and new sizes of products cost
    more than known ones.

    Args:
        rows: of each batch.

    Returns:
        `wall_s` (seconds per row, the median); on a GPU also `peak_gib`, `busy_s` (seconds per row
        that kernels ran), `kernels` (per row) and `top`, the kernels that took most.
    """
    warm_up = len(batches) // 2
    for batch in batches[:warm_up]:
        step(on_device(batch))
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    seconds = [wall_seconds(step, on_device(batch)) for batch in batches[warm_up:-1]]
    found: dict[str, Any] = {"wall_s": rounded(statistics.median(seconds) / rows)}
    if GPU:
        found["peak_gib"] = rounded(torch.cuda.max_memory_allocated() / GIB)
        kernels = profiled_kernels(step, on_device(batches[-1]))
        busy_us = sum(kernel.device_time for kernel in kernels)
        found["busy_s"] = rounded(busy_us / 1e6 / rows)
        found["kernels"] = rounded(len(kernels) / rows)
        found["top"] = top_kernels(kernels)
    return found


def wall_seconds(step: Step, batch: BatchFeature) -> float:
    """Time one step, with the GPU idle before and after."""
    idle()
    start = time.perf_counter()
    step(batch)
    idle()
    return time.perf_counter() - start


def profiled_kernels(step: Step, batch: BatchFeature) -> list[Any]:
    """Run one step and return the profiler's events of its kernels."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step(batch)
        idle()
    on_gpu = torch.autograd.DeviceType.CUDA
    return [event for event in profiled.events() if event.device_type == on_gpu]


def on_device(batch: BatchFeature) -> BatchFeature:
    """Copy a batch to the device; `BatchFeature.to` would move the batch itself."""
    return BatchFeature(dict(batch)).to(DEVICE)


def top_kernels(events: list[Any], count: int = TOP_KERNELS) -> list[tuple[str, int, float]]:
    """List the kernels that take most: name, launches, milliseconds."""
    launches: dict[str, int] = {}
    spent_ms: dict[str, float] = {}
    for event in events:
        launches[event.name] = launches.get(event.name, 0) + 1
        spent_ms[event.name] = spent_ms.get(event.name, 0.0) + event.device_time / 1e3
    ranked = sorted(spent_ms, key=lambda name: spent_ms[name], reverse=True)
    return [
        (name[:NAME_LENGTH], launches[name], round(spent_ms[name], 2)) for name in ranked[:count]
    ]


def rounded(value: float) -> float:
    """Round to four digits."""
    return float(f"{value:.4g}")


def idle() -> None:
    """Wait until the GPU has nothing to do."""
    if GPU:
        torch.cuda.synchronize()


def rates() -> dict[str, float]:
    """Measure the card: TFLOP/s of a large fp16 product and TB/s of a large copy."""
    size, nbytes = 8192, 2**30
    a = torch.randn(size, size, device="cuda", dtype=torch.float16)
    b = torch.empty(nbytes, device="cuda", dtype=torch.uint8)
    product_s = min(timed(lambda: a @ a) for _ in range(5))
    copy_s = min(timed(lambda: b.clone()) for _ in range(5))
    operations = 2 * size**3
    moved = 2 * nbytes  # read and written
    return {"tflops": operations / product_s / 1e12, "tbps": moved / copy_s / 1e12}


def timed(step: Callable[[], object]) -> float:
    """Time a step in seconds, after one of warm-up."""
    step()
    idle()
    start = time.perf_counter()
    step()
    idle()
    return time.perf_counter() - start

"""What a step takes on this machine: wall time, busy time, kernels and memory; and what its GPU sustains."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import BatchFeature

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
GIB = 2**30


def measured(
    step: Callable[[BatchFeature], None], batches: Sequence[BatchFeature], rows: int
) -> dict[str, object]:
    """Seconds, busy seconds, kernels a row, and the peak; medians over all batches but as many of warm-up, and the last.

    Each step has a batch of its own, as its experts have other loads, and sizes of products that are new cost more.
    """
    warm_up = len(batches) // 2
    for batch in batches[:warm_up]:
        step(on_device(batch))
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for batch in batches[warm_up:-1]:
        there = on_device(batch)
        idle()
        start = time.perf_counter()
        step(there)
        idle()
        times.append(time.perf_counter() - start)
    found = {"wall_s": statistics.median(times) / rows}
    if GPU:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        last = on_device(batches[-1])
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            step(last)
            idle()
        events = [
            event
            for event in profiled.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        ]
        found |= {
            "busy_s": sum(event.device_time for event in events) / 1e6 / rows,
            "kernels": len(events) / rows,
        }
        found["top"] = top_kernels(events)
    return {
        name: value if name == "top" else float(f"{value:.4g}") for name, value in found.items()
    }


def on_device(batch: BatchFeature) -> BatchFeature:
    """A copy there, as `BatchFeature.to` moves the batch itself."""
    return BatchFeature(dict(batch)).to(DEVICE)


def top_kernels(events: list, count: int = 40) -> list[tuple[str, int, float]]:
    """The kernels that take most: name, launches, milliseconds."""
    sums: dict[str, tuple[int, float]] = {}
    for event in events:
        number, spent = sums.get(event.name, (0, 0.0))
        sums[event.name] = number + 1, spent + event.device_time / 1e3
    ranked = sorted(sums.items(), key=lambda item: -item[1][1])[:count]
    return [(name[:90], number, round(spent, 2)) for name, (number, spent) in ranked]


def idle() -> None:
    if GPU:
        torch.cuda.synchronize()


def rates() -> dict[str, float]:
    """What this card sustains: TFLOP/s of a large fp16 product, TB/s of a large copy."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    b = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    product, copy = (
        min(timed(step) for _ in range(5)) for step in (lambda: a @ a, lambda: b.clone())
    )
    return {"tflops": 2 * 8192**3 / product / 1e12, "tbps": 2 * 2**30 / copy / 1e12}


def timed(step: Callable[[], object]) -> float:
    step()
    idle()
    start = time.perf_counter()
    step()
    idle()
    return time.perf_counter() - start

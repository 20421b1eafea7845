"""Measure the machine's own memory, and count what a run takes of it."""

import re
import threading
from collections import deque
from pathlib import Path

import psutil

from vqa_utils.config import Config
from vqa_utils.planning.gpu_plan import Plan
from vqa_utils.planning.memory import EXPERTS, Bytes, weights_by_module
from vqa_utils.planning.shapes import ModelShape
from vqa_utils.setting_types import GIB

# GiB of a process of its own, at the most, with the 30B on one and on two H200: tests/bench/README.md
DRIVER = 0.3  # with the process that runs its notebooks
LOADING = 2.5  # reads the base and packs it
AT_WORK = 2.4  # a kernel that trains
DECODING = 1.2  # for each of `num_workers`
WAITING = 1.0  # a kernel that has imported, until its turn comes

MEMORY_SAMPLES = 10  # the latest ones count
SECONDS_BETWEEN = 0.5  # of two samples
CGROUP = Path("/sys/fs/cgroup")  # a container's own share, by version 2 of Linux's control groups


def free_memory() -> int:
    """Return the bytes that processes can still take: of the machine, or of this container."""
    free = psutil.virtual_memory().available
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = (CGROUP / "memory.stat").read_text()
    except OSError:
        return free
    if limit == "max":
        return free
    # Files that were read and may be dropped count as used there
    cached = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)
    return min(free, max(0, int(limit) - used + (int(cached[1]) if cached else 0)))


def host_memory(config: Config, shape: ModelShape, plan: Plan, folds: int) -> Bytes:
    """Count the machine's own memory for a run whose model is on GPUs, in bytes, by purpose.

    Args:
        config: the settings of the run.
        shape: the model's.
        plan: of its GPUs.
        folds: at work at a time.
    """
    weights = weights_by_module(shape, config)
    offloaded = sum(weights[layer].get(EXPERTS, 0) for layer in plan.offloaded_layers)
    waiting = folds if config.sharing_folds > 1 else 0
    sizes_gib = {
        "the driver": DRIVER * (1 + folds),
        "the base while it is loaded": LOADING,
        "folds at work": AT_WORK * folds,
        "processes that decode pictures": DECODING * folds * config.num_workers,
        "kernels that wait": WAITING * waiting,
    }
    sizes = {purpose: int(size * GIB) for purpose, size in sizes_gib.items()}
    return {**sizes, "offloaded experts": offloaded * folds}


class LowestMemory(threading.Thread):
    """Looks at the machine's free memory while a notebook runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._latest: deque[int] = deque(maxlen=MEMORY_SAMPLES)
        self._is_over = threading.Event()

    def run(self) -> None:
        """Look until it is over."""
        while not self._is_over.wait(SECONDS_BETWEEN):
            self._latest.append(free_memory())

    def lowest(self) -> str:
        """Say how much was free a moment before, at the least."""
        least = min(self._latest, default=free_memory()) / GIB
        return f"the machine had {least:.1f} GiB of memory left a moment before"

    def __enter__(self) -> "LowestMemory":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()

"""Measure the machine's own memory, and count what a run takes of it."""

import contextlib
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
# Of folds side by side on a CPU: what their kernels share, and what each has of its own, with the
# process that runs its notebooks
SHARED_ON_CPU = 0.65
ON_CPU = 0.35

MEMORY_SAMPLES = 10  # the latest ones count
SECONDS_BETWEEN = 0.5  # of two samples
# A container's own share, by version 2 of Linux's control groups, and by version 1
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
UNLIMITED = "max"  # version 1 has a number beyond any machine's


def free_memory() -> int:
    """Return the bytes that processes can still take: of the machine, or of this container."""
    free = psutil.virtual_memory().available
    for folder, limit, used in CGROUPS:
        with contextlib.suppress(OSError):
            free = min(free, _free_of_container(folder, limit, used, free))
    return free


def _free_of_container(folder: Path, limit_file: str, used_file: str, free: int) -> int:
    limit = (folder / limit_file).read_text().strip()
    if limit == UNLIMITED:
        return free
    used = int((folder / used_file).read_text())
    stat = (folder / "memory.stat").read_text()
    # Files that were read and may be dropped count as used there. Version 1 counts those of the
    # groups below it in a later line
    cached = re.findall(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE)
    return max(0, int(limit) - used + (int(cached[-1]) if cached else 0))


def memory_of_children() -> int:
    """Return the bytes that this process's children hold of their own, without files and shared ones."""
    held = 0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            memory = child.memory_info()
            held += memory.rss - getattr(memory, "shared", 0)  # Linux tells what is shared
    return held


def folds_on_cpu() -> int:
    """Return for how many folds, trained side by side on a CPU, there is memory; at least one."""
    return max(1, int((free_memory() / GIB - DRIVER - SHARED_ON_CPU) / ON_CPU))


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

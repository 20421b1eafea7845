"""Measure the machine's own memory."""

import re
import threading
from collections import deque
from pathlib import Path

import psutil

from vqa_utils.setting_types import GIB

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

"""Measure the machine's own memory."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")  # a container's own share, by version 2 of Linux's control groups


def free_memory() -> int:
    """Return the bytes that processes can still take: of the machine, or of this container."""
    free = psutil.virtual_memory().available
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except OSError:
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))

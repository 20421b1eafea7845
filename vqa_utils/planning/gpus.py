"""Which GPUs are there, and what a run may take of them."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from vqa_utils.config import Config
from vqa_utils.setting_types import size_in_bytes

CONTEXT_GIB = 0.5  # of CUDA and its libraries on each GPU, outside the allocator and its limit


@dataclass(frozen=True)
class Gpu:
    """A GPU that the run may use."""

    name: str
    memory_gib: float


T4 = Gpu("Tesla T4", 14.74)  # what is usable of 16 GB


def find_gpus() -> list[Gpu]:
    """The GPUs that nvidia-smi lists and CUDA_VISIBLE_DEVICES leaves, without starting CUDA."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    if found.returncode:
        return []
    rows = [line.rsplit(",", 1) for line in found.stdout.splitlines() if line.strip()]
    gpus = [Gpu(name.strip(), float(mib) / 1024) for name, mib in rows]
    return [gpus[int(number)] for number in visible_numbers(len(gpus))]


def visible_numbers(count: int) -> list[str]:
    """CUDA's numbers of the GPUs that CUDA_VISIBLE_DEVICES leaves of `count`; names by UUID are left to CUDA."""
    every = [str(number) for number in range(count)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        every
        if visible is None
        else [part.strip() for part in visible.split(",") if part.strip() in every]
    )


def gpu_limits(config: Config, gpus: Sequence[Gpu]) -> list[int]:
    """What the run may hold on each GPU, in bytes: its memory without CUDA's own, or `max_memory` where that is less.

    Where `max_memory` names fewer GPUs than there are, the others are not used.
    """
    free = [int((gpu.memory_gib - CONTEXT_GIB) * 2**30) for gpu in gpus]
    wanted = [size_in_bytes(size) for size in config.max_memory] or free
    return [min(pair) for pair in zip(free, wanted, strict=False)]

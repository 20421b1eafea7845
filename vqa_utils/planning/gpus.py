"""Find a run's GPUs, and how much memory it may take on each.

nvidia-smi is the only source: the check before a run, the plan and the loader all ask it. It does
not start CUDA.
"""

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vqa_utils.config import Config
from vqa_utils.errors import VqaError
from vqa_utils.setting_types import GIB, size_in_bytes

# Memory that CUDA and its libraries take on each GPU in a process, outside the allocator and its
# limit
CONTEXT_GIB = 0.5
# On Linux, the file of the first GPU that a driver runs
FIRST_GPU = Path("/dev/nvidia0")
# Its Conv3d makes the vision tower 10 to 20 times slower (pytorch/pytorch#174051)
SLOW_TORCH = "2.9."
QUERY = "--query-gpu=uuid,memory.total,memory.reserved,name"


class MachineError(VqaError):
    """The machine is too small for the settings, or not set up for them."""


@dataclass(frozen=True)
class Gpu:
    """A GPU for the run."""

    name: str
    memory_gib: float
    """As CUDA counts it: without the driver's reserve."""


T4 = Gpu("Tesla T4", 14.74)  # usable of 16 GB


def find_gpus() -> list[Gpu]:
    """List the GPUs of CUDA_VISIBLE_DEVICES in its order; [] on a machine without any.

    Makes CUDA number GPUs by PCI bus, as nvidia-smi does; by default it begins with the fastest.

    Raises:
        MachineError: there is a GPU, and nvidia-smi is missing or fails.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return []
    gpus = _listed_gpus()
    if visible is None:
        return list(gpus.values())
    found = []
    for part in visible.split(","):
        gpu = _gpu_named(part.strip(), gpus)
        if gpu is None:  # CUDA too ignores what follows an unknown name
            break
        found.append(gpu)
    return found


def visible_numbers(count: int) -> list[str]:
    """Name the `count` GPUs of `find_gpus` for CUDA_VISIBLE_DEVICES: each by its number or UUID."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(count)]
    return [part.strip() for part in visible.split(",")][:count]


def gpu_limits(config: Config, gpus: Sequence[Gpu]) -> list[int]:
    """Compute the run's limit on each GPU in bytes: the smaller of its memory and `max_memory`.

    CUDA's own share, which each fold's process has, is left out. If `max_memory` names fewer GPUs
    than there are, the rest stay unused.
    """
    contexts_gib = config.sharing_folds * CONTEXT_GIB
    free = [int((gpu.memory_gib - contexts_gib) * GIB) for gpu in gpus]
    allowed = [size_in_bytes(size) for size in config.max_memory] or free
    return [min(pair) for pair in zip(free, allowed, strict=False)]


def describe_gpus(gpus: Sequence[Gpu]) -> str:
    """Name the GPUs with their memory: "Tesla T4 with 14.7 GiB", or "no GPU"."""
    return ", ".join(f"{gpu.name} with {gpu.memory_gib:.1f} GiB" for gpu in gpus) or "no GPU"


def check_torch(version: str | None = None) -> None:
    """Refuse a torch with a slow vision tower, by its version; torch is not imported.

    Raises:
        MachineError: torch 2.9.
    """
    version = version or importlib.metadata.version("torch")
    if version.startswith(SLOW_TORCH):
        raise MachineError(
            f"torch {version}: expected any other than 2.9, "
            "whose Conv3d makes the vision tower 10 to 20 times slower; "
            "pip install 'torch>=2.10' 'torchvision>=0.25'"
        )


def _listed_gpus() -> dict[str, Gpu]:
    """Ask nvidia-smi for all GPUs, by UUID and in its order.

    Raises:
        MachineError: there is a GPU, and nvidia-smi is missing or fails.
    """
    problem = "no such command"
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", QUERY, "--format=csv,noheader,nounits"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return dict(_uuid_and_gpu(line) for line in answer.stdout.splitlines() if line.strip())
        problem = (answer.stdout + answer.stderr).strip() or f"exit status {answer.returncode}"
    if FIRST_GPU.exists():
        raise MachineError(
            f"nvidia-smi: expected the GPUs' names and memory, as {FIRST_GPU} shows a GPU, "
            f"found {problem}; install the driver's tools, "
            "or set CUDA_VISIBLE_DEVICES= (empty) to run without a GPU"
        )
    return {}


def _uuid_and_gpu(line: str) -> tuple[str, Gpu]:
    """Read a line such as "GPU-c2209cba-..., 143771, 616, NVIDIA H200"; sizes in MiB.

    CUDA can use the total without the driver's reserve: 143,155 MiB on this H200.
    """
    # The name stands last in QUERY: a comma in it does not split it
    uuid, total_mib, reserved_mib, name = [part.strip() for part in line.split(",", 3)]
    usable_mib = float(total_mib)
    if reserved_mib.isdecimal():  # "[N/A]" for a GPU that reserves nothing
        usable_mib -= float(reserved_mib)
    return uuid, Gpu(name, usable_mib / 1024)


def _gpu_named(part: str, gpus: dict[str, Gpu]) -> Gpu | None:
    """Find the GPU of a part of CUDA_VISIBLE_DEVICES: a number, or the beginning of a UUID."""
    if part.isdecimal():
        in_order = list(gpus.values())
        return in_order[int(part)] if int(part) < len(in_order) else None
    for uuid, gpu in gpus.items():
        if part and uuid.startswith(part):
            return gpu
    return None

"""Find a run's GPUs, and how much memory it may take on each.

nvidia-smi is the only source: the check before a run, the plan and the loader all ask it. It does
not start CUDA.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
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
# A line of its answer; the name stands last, as it may have a comma
LINE = re.compile(r"(GPU-[\w-]+), ([^,]*), ([^,]*), (.+)")
USED_QUERY = "--query-gpu=uuid,memory.used"
USED_LINE = re.compile(r"(GPU-[\w-]+), (\d+)")
PATIENCE = 60  # seconds for nvidia-smi, which may have to wake the GPUs


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
        MachineError: there is a GPU, and nvidia-smi is missing or fails; CUDA_VISIBLE_DEVICES names
            a part of a GPU, or one twice.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return []
    gpus = _listed_gpus()
    return _of_known_memory(_visible(gpus, visible), gpus)


def used_memory() -> list[float]:
    """Return the GiB in use on each GPU of CUDA_VISIBLE_DEVICES; [] where nvidia-smi fails."""
    try:
        answer = _ask(USED_QUERY)
    except (OSError, subprocess.TimeoutExpired):
        return []
    used = {}
    for line in answer.stdout.splitlines():
        match = USED_LINE.fullmatch(line.strip())
        if match:
            used[match[1]] = float(match[2]) / 1024
    return [used[uuid] for uuid in _visible(used, os.environ.get("CUDA_VISIBLE_DEVICES"))]


def _visible(gpus: Mapping[str, object], visible: str | None) -> list[str]:
    """Return the UUIDs that CUDA_VISIBLE_DEVICES names, in its order.

    Raises:
        MachineError: it names a part of a GPU, or one twice.
    """
    if visible is None:
        return list(gpus)
    found: list[str] = []
    for part in visible.split(","):
        uuid = _uuid_named(part.strip(), gpus)
        if uuid is None:  # CUDA too ignores what follows an unknown name
            break
        found.append(uuid)
    if len(set(found)) < len(found):
        raise MachineError(
            f"CUDA_VISIBLE_DEVICES={visible}: expected each GPU once, found one twice; "
            "CUDA would see none"
        )
    return found


def planned_gpus(t4: int) -> list[Gpu]:
    """Return so many T4 to plan for; for 0 those of this machine, or else two T4."""
    return [T4] * t4 or find_gpus() or [T4, T4]


def _of_known_memory(uuids: Iterable[str], gpus: dict[str, Gpu | None]) -> list[Gpu]:
    """Return GPUs by their UUIDs.

    Raises:
        MachineError: nvidia-smi does not tell the memory of one. To leave it out would change the
            others' numbers.
    """
    found = []
    for uuid in uuids:
        gpu = gpus[uuid]
        if gpu is None:
            raise MachineError(
                f"nvidia-smi: expected the memory of each GPU, found none of {uuid}; "
                "name others in CUDA_VISIBLE_DEVICES, or none (CUDA_VISIBLE_DEVICES=)"
            )
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
    if gpus:
        return ", ".join(f"{gpu.name} with {gpu.memory_gib:.1f} GiB" for gpu in gpus)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "no GPU" if visible is None else f"no GPU (CUDA_VISIBLE_DEVICES={visible})"


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


def _listed_gpus() -> dict[str, Gpu | None]:
    """Ask nvidia-smi for all GPUs, by UUID and in its order; None for one of unknown memory.

    Raises:
        MachineError: there is a GPU, and nvidia-smi is missing or fails.
    """
    problem = "no such command"
    if shutil.which("nvidia-smi"):
        try:
            answer = _ask(QUERY)
        except subprocess.TimeoutExpired:
            problem = f"no answer within {PATIENCE} seconds"
        except OSError as error:
            problem = str(error)
        else:
            gpus = _read(answer.stdout)
            if answer.returncode == 0 and gpus:
                return gpus
            problem = (answer.stdout + answer.stderr).strip() or f"exit status {answer.returncode}"
    if FIRST_GPU.exists():
        raise MachineError(
            f"nvidia-smi: expected the GPUs' names and memory, as {FIRST_GPU} shows a GPU, "
            f"found {problem}; install the driver's tools, "
            "or set CUDA_VISIBLE_DEVICES= (empty) to run without a GPU"
        )
    return {}


def _ask(query: str) -> subprocess.CompletedProcess[str]:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False
    )


def _read(answer: str) -> dict[str, Gpu | None]:
    """Read lines such as "GPU-c2209cba-..., 143771, 616, NVIDIA H200"; sizes in MiB.

    Warnings are left out. CUDA can use the total without the driver's reserve: 143,155 MiB on this
    H200.
    """
    gpus: dict[str, Gpu | None] = {}
    for line in answer.splitlines():
        match = LINE.fullmatch(line.strip())
        if match:
            uuid, total_mib, reserved_mib, name = match.groups()
            if not total_mib.isdecimal():
                gpus[uuid] = None
                continue
            usable_mib = float(total_mib)
            if reserved_mib.isdecimal():  # "[N/A]" for a GPU that reserves nothing
                usable_mib -= float(reserved_mib)
            gpus[uuid] = Gpu(name, usable_mib / 1024)
    return gpus


def _uuid_named(part: str, gpus: Mapping[str, object]) -> str | None:
    """Find the GPU of a part of CUDA_VISIBLE_DEVICES: a number, or the beginning of a UUID.

    Raises:
        MachineError: it is a part of a GPU.
    """
    if part.startswith("MIG"):
        raise MachineError(
            f"CUDA_VISIBLE_DEVICES: expected whole GPUs, found {part}, a part of one; "
            "nvidia-smi tells no memory of it to plan with: name a GPU, such as 0"
        )
    if part.isdecimal():
        in_order = list(gpus)
        return in_order[int(part)] if int(part) < len(in_order) else None
    named = [uuid for uuid in gpus if part and uuid.startswith(part)]
    return named[0] if len(named) == 1 else None  # to CUDA, the beginning of two is unknown

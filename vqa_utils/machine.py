"""Which GPUs are there, what a run may take of them, and whether the settings can work here. Free of torch."""

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vqa_utils.config import DEMO_MODEL_NAME, Config
from vqa_utils.errors import VqaError
from vqa_utils.hub import SourceError
from vqa_utils.plan import SCORE_BATCH, Plan, make_plan, settled
from vqa_utils.presets import PRESETS, preset
from vqa_utils.setting_types import size_in_bytes
from vqa_utils.shapes import ModelShape, ShapeError, published_config, read_shape
from vqa_utils.source import check_source, config_of

CONTEXT_GIB = 0.5  # of CUDA and its libraries on each GPU, outside the allocator and its limit
SLOW_TORCH = "2.9."  # its Conv3d makes the vision tower 10 to 20 times slower (pytorch/pytorch#174051)


class MachineError(VqaError):
    """The machine does not have what the settings need."""


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
    return every if visible is None else [part.strip() for part in visible.split(",") if part.strip() in every]


def gpu_limits(config: Config, gpus: Sequence[Gpu]) -> list[int]:
    """What the run may hold on each GPU, in bytes: its memory without CUDA's own, or `max_memory` where that is less.

    Where `max_memory` names fewer GPUs than there are, the others are not used.
    """
    free = [int((gpu.memory_gib - CONTEXT_GIB) * 2**30) for gpu in gpus]
    wanted = [size_in_bytes(size) for size in config.max_memory] or free
    return [min(pair) for pair in zip(free, wanted, strict=False)]


def shape_of(config: Config) -> ModelShape:
    """The shape of the settings' model, from the shipped files, a local folder, or the hub.

    Raises:
        SourceError: the model is nowhere.
        ShapeError: it is of a family that the plan does not know.
    """
    return read_shape(published_config(config.model) or config_of(config.model))


def plan_for(config: Config, gpus: Sequence[Gpu]) -> Plan:
    """The memory plan of the settings on these GPUs."""
    return make_plan(config, shape_of(config), gpu_limits(config, gpus))


def fold_gpus(config: Config, folds: int, gpus: Sequence[Gpu]) -> list[int]:
    """The places in `gpus` of those that hold the model alone, where that many folds may run side by side on them."""
    if folds < 2 or len(gpus) < 2 or len(config.max_memory) > 1 or config.device_map != "plan":
        return []
    return [place for place, gpu in enumerate(gpus) if plan_for(config, [gpu]).fits]


def settled_here(config: Config, gpus: Sequence[Gpu]) -> Config:
    """The settings with a number for each batch that is "auto": what the plan allows on these GPUs, or on T4 where there is none.

    One row (and eight scored) where nothing plans: accelerate places the model, or it is none that the plan knows (`check_run`
    says so).
    """
    if config.is_settled:
        return config
    try:
        shape = shape_of(config) if config.device_map == "plan" else None
    except (SourceError, ShapeError):
        shape = None
    if shape is None:
        config = config if config.micro_batch != "auto" else config.with_micro_batch(1)
        return config if config.is_settled else replace(config, score_batch=SCORE_BATCH)
    return settled(config, shape, gpu_limits(config, gpus or [T4] * max(1, len(config.max_memory))))


def check_torch(version: str | None = None) -> None:
    """Refuse a torch whose vision tower crawls.

    Raises:
        MachineError: torch 2.9.
    """
    version = version or importlib.metadata.version("torch")
    if version.startswith(SLOW_TORCH):
        raise MachineError(
            f"torch {version}: expected any other than 2.9, whose Conv3d makes the vision tower 10 to 20 times slower; "
            "pip install 'torch>=2.10' 'torchvision>=0.25'"
        )


def check_machine(config: Config, gpus: Sequence[Gpu]) -> None:
    """Say at once that a machine cannot run the settings.

    Raises:
        MachineError: with what is needed, what is there, and the presets that would work here.
    """
    if config.model == DEMO_MODEL_NAME:
        return
    if not gpus and Path(config.model).is_dir():  # a small model of one's own may well run on a CPU
        return
    check_torch()
    if not gpus:
        raise MachineError(_refusal(config, gpus, _need_of_the_model(config)))
    if config.device_map != "plan":  # then what fits, and how, is accelerate's
        return
    plan = plan_for(config, gpus)
    if not plan.fits:
        raise MachineError(_refusal(config, gpus, _need(plan)))


def check_run(config: Config, gpus: Sequence[Gpu]) -> None:
    """Whether the machine and the model are there for a run.

    Raises:
        MachineError: with the problems of both at once.
    """
    problems = []
    for check in (lambda: check_machine(config, gpus), lambda: check_source(config.model)):
        try:
            check()
        except VqaError as error:
            problems.append(str(error))
    if problems:
        raise MachineError("\n".join(dict.fromkeys(problems)))


def _need_of_the_model(config: Config) -> str:
    """The least, one row a pass, on GPUs like Kaggle's; just a GPU where the model's shape is not to be had."""
    least = replace(config.with_micro_batch(1), score_batch=1, use_gradient_checkpointing=True)
    try:
        return _need(plan_for(least, [T4] * max(1, len(config.max_memory))))
    except (SourceError, ShapeError):
        return "a GPU"


def _need(plan: Plan) -> str:
    return f"{sum(gpu.total for gpu in plan.gpus) / 2**30:.1f} GiB of GPU memory"


def _refusal(config: Config, gpus: Sequence[Gpu], need: str) -> str:
    there = ", ".join(f"{gpu.name} with {gpu.memory_gib:.1f} GiB" for gpu in gpus) or "no GPU"
    limit = f" within max_memory={','.join(config.max_memory)}" if config.max_memory and gpus else ""
    working = [name for name in PRESETS if name == "demo" or (gpus and plan_for(preset(name), gpus).fits)]
    hints = [f"presets that work here: {', '.join(working)} (--preset {working[0]})"]
    if gpus and not config.offload_experts and shape_of(config).experts:
        hints.append("--set offload_experts=true streams the experts from host memory: slow, and it works")
    return f"preset {config.preset} ({config.model}): expected {need}{limit}, found {there}; {'; '.join(hints)}"

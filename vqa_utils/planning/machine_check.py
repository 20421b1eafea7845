"""Which GPUs are there, what a run may take of them, and whether the settings can work here. Free of torch."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vqa_utils.config import DEMO_MODEL_NAME, Config
from vqa_utils.errors import VqaError
from vqa_utils.planning._hub import SourceError
from vqa_utils.planning._source import check_source
from vqa_utils.planning.gpus import T4, Gpu
from vqa_utils.planning.plan import Plan, plan_for
from vqa_utils.planning.shapes import ShapeError, shape_of
from vqa_utils.presets import PRESETS, preset

SLOW_TORCH = (
    "2.9."  # its Conv3d makes the vision tower 10 to 20 times slower (pytorch/pytorch#174051)
)


class MachineError(VqaError):
    """The machine does not have what the settings need."""


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
    limit = (
        f" within max_memory={','.join(config.max_memory)}" if config.max_memory and gpus else ""
    )
    working = [
        name for name in PRESETS if name == "demo" or (gpus and plan_for(preset(name), gpus).fits)
    ]
    hints = [f"presets that work here: {', '.join(working)} (--preset {working[0]})"]
    if gpus and not config.offload_experts and shape_of(config).experts:
        hints.append(
            "--set offload_experts=true streams the experts from host memory: slow, and it works"
        )
    return f"preset {config.preset} ({config.model}): expected {need}{limit}, found {there}; {'; '.join(hints)}"

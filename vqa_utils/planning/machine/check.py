"""Refuse a run without the machine or the model for it, before it starts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vqa_utils.config import DEMO_MODEL_NAME, Config
from vqa_utils.errors import VqaError
from vqa_utils.planning.machine.gpus import Gpu, MachineError, check_torch
from vqa_utils.planning.plan import assumed_gpus, describe_need, memory_plan, plan_for, refusal
from vqa_utils.planning.shapes import ShapeError
from vqa_utils.planning.source.check import SourceError, check_source


def check_machine(config: Config, gpus: Sequence[Gpu]) -> None:
    """Refuse settings beyond the machine.

    Raises:
        MachineError: with the memory that is needed, the GPUs, and the presets for them.
    """
    if config.model == DEMO_MODEL_NAME:
        return
    if gpus:
        memory_plan(config, gpus)  # raises if the model does not fit
        return
    if Path(config.model).is_dir():  # a small model of one's own may well run on a CPU
        return
    check_torch()
    raise MachineError(refusal(config, gpus, _least_need(config)))


def check_run(config: Config, gpus: Sequence[Gpu]) -> None:
    """Refuse a run without the machine or the model for it.

    Raises:
        MachineError: with the problems of both at once.
    """
    problems = []
    try:
        check_machine(config, gpus)
    except VqaError as error:
        problems.append(str(error))
    try:
        check_source(config.model)
    except VqaError as error:
        problems.append(str(error))
    if problems:
        # Both checks read config.json, and may say the same of it
        without_repetition = dict.fromkeys(problems)
        raise MachineError("\n".join(without_repetition))


def _least_need(config: Config) -> str:
    """Say how much the model takes at least: one row per pass, on T4; "a GPU" without a plan."""
    one_row = replace(config.with_micro_batch(1), score_batch=1, use_gradient_checkpointing=True)
    try:
        return describe_need(plan_for(one_row, assumed_gpus(config)))
    except (SourceError, ShapeError):
        return "a GPU"

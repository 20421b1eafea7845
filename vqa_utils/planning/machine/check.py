"""Refuse a run without the machine or the model for it, before it starts."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vqa_utils.config import DEMO_MODEL_NAME, Config
from vqa_utils.errors import problems_of
from vqa_utils.planning.machine.gpus import Gpu, MachineError, check_torch
from vqa_utils.planning.machine.host import free_memory, host_memory, memory_of_children
from vqa_utils.planning.placement import Placement
from vqa_utils.planning.plan import (
    assumed_gpus,
    describe_need,
    fold_gpus,
    is_planned,
    memory_plan,
    plan_for,
    refusal,
)
from vqa_utils.planning.shapes import LAYERS, ShapeError, is_matrix, shape_of
from vqa_utils.planning.source.check import SourceError, check_packing, check_source, source_of
from vqa_utils.setting_types import GIB


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
    if Path(source_of(config)).is_dir():  # a small model of one's own may well run on a CPU
        return
    check_torch()
    raise MachineError(refusal(config, gpus, _least_need(config)))


def check_longest_test(config: Config, gpus: Sequence[Gpu], tokens: int, row: str) -> None:
    """Refuse another test set whose longest row is too long for the memory of a run's GPUs.

    Args:
        config: the run's settings; its placement stays.
        gpus: the machine's.
        tokens: of the row's text.
        row: its name, for the message.

    Raises:
        MachineError: with the row and the memory that it takes.
    """
    is_counted = bool(gpus) and config.model != DEMO_MODEL_NAME and is_planned(config)
    if not is_counted or tokens <= config.scored_text:
        return
    places = fold_gpus(config, len(config.adapter_numbers), gpus)
    plan = plan_for(config, [gpus[places[0]]] if places else gpus)
    placement = Placement(
        replace(config, longest_test=tokens),
        shape_of(config),
        gives_back=plan.gives_back,
        experts_at_once=plan.experts_at_once,
    )
    for number, gpu in enumerate(plan.gpus):
        needed = placement.recounted(gpu).total
        if needed > gpu.limit:
            raise MachineError(
                f"{row}: expected a text of fewer tokens than its {tokens:,}, as scoring it "
                f"takes {needed / GIB:.1f} of the {gpu.limit / GIB:.1f} GiB of GPU {number}; "
                "shorten it"
            )


def check_host(config: Config, gpus: Sequence[Gpu]) -> None:
    """Refuse settings beyond the memory of the machine itself.

    Raises:
        MachineError: with the memory that is needed, by purpose, and what needs less.
    """
    if not gpus or config.model == DEMO_MODEL_NAME or not is_planned(config):
        return
    plan = plan_for(config, gpus)
    places = fold_gpus(config, len(config.adapter_numbers), gpus)
    adapters = len(config.adapter_numbers)
    folds = min(adapters, max(len(places), config.sharing_folds))
    needed = host_memory(config, shape_of(config), plan, folds)
    total = sum(needed.values())
    free = free_memory() + memory_of_children()  # a lender that has started is part of the need
    if total <= free:
        return
    parts = [f"{purpose} {size / GIB:.1f}" for purpose, size in needed.items() if size]
    hints = []
    if folds > 1 and not places:
        hints.append("--set folds_at_once=1 takes one fold at a time")
    if config.num_workers:
        hints.append("--set num_workers=0 decodes pictures in the training process")
    if plan.offloaded_layers:
        hints.append("a smaller model, or more GPU memory, leaves fewer experts to offload")
    raise MachineError(
        f"expected {total / GIB:.1f} GiB of the machine's own memory to be free "
        f"({', '.join(parts)}), found {free / GIB:.1f}; {'; '.join(hints) or 'end other processes'}"
    )


def check_targets(config: Config) -> None:
    """Refuse `target_modules` that the language model has not.

    Raises:
        SourceError: with those, and the names that it has.
    """
    if not is_planned(config):  # `add_lora` looks at the model itself
        return
    layers = []
    for name, size in shape_of(config).parameters.items():
        if name.startswith(LAYERS) and is_matrix(name) and len(size) == 2:
            layers.append(name.removesuffix(".weight"))

    def has(target: str) -> bool:
        return any(name.endswith(f".{target}") for name in layers)

    missing = [target for target in config.target_modules if not has(target)]
    names = dict.fromkeys(name.rpartition(".")[2] for name in layers)
    if missing:
        raise SourceError(
            f"target_modules: expected layers of {config.model}'s language model "
            f"({', '.join(names)}), found {', '.join(missing)}"
        )


def check_run(config: Config, gpus: Sequence[Gpu]) -> None:
    """Refuse a run without the machine or the model for it.

    Raises:
        MachineError: with all problems at once.
    """
    checks = (
        functools.partial(check_machine, config, gpus),
        functools.partial(check_host, config, gpus),
        functools.partial(check_targets, config),
        functools.partial(check_source, source_of(config)),
        functools.partial(check_packing, config, on_gpu=bool(gpus)),
    )
    problems = problems_of(checks)  # several read config.json, and may say the same of it
    if problems:
        raise MachineError("\n".join(problems))


def _least_need(config: Config) -> str:
    """Say how much the model takes at least: one row per pass, on T4; "a GPU" without a plan."""
    one_row = replace(config.with_micro_batch(1), score_batch=1, use_gradient_checkpointing=True)
    try:
        return describe_need(plan_for(one_row, assumed_gpus(config)))
    except (SourceError, ShapeError):
        return "a GPU"

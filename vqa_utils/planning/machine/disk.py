"""Count what a run writes, tell of a full disk, and leave nothing half-written on it."""

import errno
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from vqa_utils.artifacts.manifest import tear
from vqa_utils.artifacts.paths import FoldPaths, RunPaths, shown
from vqa_utils.config import Config
from vqa_utils.errors import RunError, VqaError
from vqa_utils.planning.machine.gpus import MachineError
from vqa_utils.planning.memory import FP32, Bytes, lora_weights
from vqa_utils.planning.shapes import shape_of
from vqa_utils.prompts import LETTERS

# As Linux, Rust (safetensors) and torch say it
WORDS_OF_A_FULL_DISK = re.compile(
    r"No space left on device|os error 28\b|Disk quota exceeded|os error 122\b"
    r"|PytorchStreamWriter failed writing|inline_container.*unexpected pos"
)
SHARED_MEMORY = "shared memory"  # of a container, which torch finds full in the same words
MB = 10**6
CHECKPOINTS = 3  # of a training at a time: the newest, the best epoch's, and one being written
SETTINGS_BYTES = 20_000  # beside the weights; the demo's have 12 KB
LOG_BYTES = 1 * MB  # of some thousand steps, with the states of generators and schedules
NOTEBOOK_BYTES = 1 * MB  # the largest of the demo's has 0.2 MB
OF_NO_FOLD = 4  # notebooks
REPORT_BYTES = 5 * MB
NUMBER_BYTES = 22  # of a probability in a CSV, with its comma
ID_BYTES = 20


def run_bytes(config: Config, untrained: Sequence[int], at_once: int, rows: int) -> Bytes:
    """Count the bytes that a run has yet to write, by purpose.

    Args:
        config: the settings of the run.
        untrained: its folds without an adapter.
        at_once: folds at work at a time.
        rows: of all its tables.
    """
    line = ID_BYTES + len(LETTERS) * NUMBER_BYTES
    orders = config.tta + 1  # and their mean
    return {
        "adapters": adapter_bytes(config) * len(untrained),
        "checkpoints": CHECKPOINTS * checkpoint_bytes(config) * min(at_once, len(untrained)),
        "probabilities": rows * line * orders * (len(config.adapter_numbers) + 1),
        "notebooks": NOTEBOOK_BYTES * (OF_NO_FOLD + 2 * len(config.adapter_numbers)),
        "report": REPORT_BYTES,
    }


def adapter_bytes(config: Config) -> int:
    """Count an adapter's files: LoRA in fp32, and settings."""
    return FP32 * _lora_weights(config) + SETTINGS_BYTES


def checkpoint_bytes(config: Config) -> int:
    """Count a checkpoint's files: an adapter, AdamW's two moments, and a log of the steps."""
    return adapter_bytes(config) + 2 * FP32 * _lora_weights(config) + LOG_BYTES


def _lora_weights(config: Config) -> int:
    """Count LoRA's weights; 0 for a model of a family without a plan."""
    try:
        parameters = shape_of(config).parameters
    except VqaError:
        return 0
    return sum(lora_weights(name, size, config) for name, size in parameters.items())


def check_disk(
    paths: RunPaths, config: Config, untrained: Sequence[int], at_once: int, rows: int
) -> None:
    """Refuse a run that its disk cannot hold.

    Args:
        paths: the run.
        config: its settings.
        untrained: its folds without an adapter.
        at_once: folds at work at a time.
        rows: of all its tables.

    Raises:
        MachineError: with the bytes by purpose.
    """
    needed = run_bytes(config, untrained, at_once, rows)
    total, free = sum(needed.values()), free_bytes(paths)
    if total <= free:
        return
    parts = [f"{purpose} {size / MB:,.0f}" for purpose, size in needed.items() if size]
    raise MachineError(
        f"{shown(paths.folder)}: expected {total / MB:,.0f} MB to be free on its disk "
        f"({', '.join(parts)}), found {free / MB:,.0f}; free some, or set the environment variable "
        "VQA_RUNS_DIR to a folder on another disk"
    )


class DiskFull(RunError):
    """A disk has no room left for a file of the run."""


def is_full(error: BaseException) -> bool:
    """Tell whether an error comes of a full disk, or of a quota."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    return WORDS_OF_A_FULL_DISK.search(text) is not None and SHARED_MEMORY not in text


def describe_full(folder: Path, run_id: str | None = None) -> str:
    """Say that the disk of a folder is full, and what to do.

    Args:
        folder: on the disk, or a file; it need not be there.
        run_id: of the run to go on with.
    """
    folder = _there(folder)
    usage = shutil.disk_usage(folder)
    resume = " ".join(["python run_all.py --resume", *(["--run-id", run_id] if run_id else [])])
    return (
        f"the disk of {shown(folder)} is full: {usage.free / MB:,.1f} of {usage.total / MB:,.0f} MB "
        f"are left; delete what is not needed there, and `{resume}` goes on from here"
    )


def drop_half_written(fold: FoldPaths) -> None:
    """Delete a fold's checkpoints that are not whole, and an adapter that was not finished.

    Its notebook must have ended.
    """
    for checkpoint in fold.checkpoints.glob("*/checkpoint-*"):
        if tear(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)
    if not fold.meta.exists():
        shutil.rmtree(fold.adapter, ignore_errors=True)


def free_bytes(paths: RunPaths) -> int:
    """Return the free bytes on the disk of a run, whose folder need not be there."""
    return shutil.disk_usage(_there(paths.folder)).free


def _there(path: Path) -> Path:
    """Return the nearest folder above a path, or itself, that is there."""
    while not path.is_dir():
        path = path.parent
    return path

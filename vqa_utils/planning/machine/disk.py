"""Count what a run writes, and refuse one that its disk cannot hold."""

from collections.abc import Sequence

from vqa_utils.artifacts.disk import MB, free_bytes
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.config import Config
from vqa_utils.errors import VqaError
from vqa_utils.planning.machine.gpus import MachineError
from vqa_utils.planning.memory import FP32, LORA, LORA_BYTES, Bytes, weights_by_module
from vqa_utils.planning.shapes import shape_of
from vqa_utils.prompts import LETTERS

CHECKPOINTS = 3  # of a training at a time: the newest, the best epoch's, and one being written
NOTEBOOK_BYTES = 1 * MB  # the largest of the demo's has 0.3 MB
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
    lora = _lora_bytes(config)  # with its optimizer
    adapter = lora * FP32 // LORA_BYTES
    line = ID_BYTES + len(LETTERS) * NUMBER_BYTES
    orders = config.tta + 1  # and their mean
    return {
        "adapters": adapter * len(untrained),
        "checkpoints": CHECKPOINTS * lora * min(at_once, len(untrained)),
        "probabilities": rows * line * orders * (len(config.adapter_numbers) + 1),
        "notebooks": NOTEBOOK_BYTES * (4 + 2 * len(config.adapter_numbers)),
        "report": REPORT_BYTES,
    }


def checkpoint_bytes(config: Config) -> int:
    """Return the most bytes of a checkpoint; 0 for a model of a family without a plan."""
    return _lora_bytes(config)


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


def _lora_bytes(config: Config) -> int:
    """Count LoRA and its optimizer; 0 for a model of a family without a plan."""
    try:
        modules = weights_by_module(shape_of(config), config)
    except VqaError:
        return 0
    return sum(groups.get(LORA, 0) for groups in modules.values())

"""Log steps, guard against NaN gradients, free and measure memory, as callbacks."""

import csv
import math
import resource
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import TrainerCallback

from vqa_utils.artifacts.files import TornFile, read_table, write_csv, write_text
from vqa_utils.artifacts.stop import tell_by_hand
from vqa_utils.errors import VqaError
from vqa_utils.model.lending.attach import borrowed_bytes
from vqa_utils.setting_types import GIB

LOG_COLUMNS = [
    "step",
    "max_steps",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "seconds_per_step",
    "memory_gib",
    "ended",  # seconds since 1970
]
MOST_SKIPPED = 20  # steps in a row: by then a loss scale of 256 is below one, so none would help


class TrainingError(VqaError):
    """A training that cannot go on."""


class TrainLog(TrainerCallback):
    """Append one line per step to train_log.csv.

    A killed run still has its log, and the terminal can follow it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.step_start = time.time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start a new log; a resumed run keeps the lines up to its checkpoint."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        log = pd.DataFrame(columns=LOG_COLUMNS)
        resumed = state.global_step > 0
        if resumed and self.path.exists():
            log = self._whole_lines()
        up_to_checkpoint = log["step"] <= state.global_step
        write_csv(self.path, log[up_to_checkpoint])

    def _whole_lines(self) -> pd.DataFrame:
        """Read the log without a line that was half written; it begins anew if it is torn."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        write_text(
            self.path,
            b"".join(line for line in lines if line.endswith(b"\n")).decode(errors="replace"),
        )
        try:
            return read_table(self.path, LOG_COLUMNS, mend="it begins anew")
        except TornFile as error:
            print(error)
            return pd.DataFrame(columns=LOG_COLUMNS)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the step's clock."""
        self.step_start = time.time()

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append the line of a step; an evaluation's log has no `loss`."""
        if not logs or "loss" not in logs:
            return
        line = {
            "step": state.global_step,
            "max_steps": state.max_steps,
            **logs,
            "seconds_per_step": round(time.time() - self.step_start, 4),  # logging_steps is 1
            "memory_gib": sum(peak_memory_gib()),
            "ended": round(time.time(), 1),
        }
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, LOG_COLUMNS, extrasaction="ignore").writerow(line)
        tell_by_hand(state.global_step, state.max_steps, f"loss {logs['loss']:.3f}, step")


class NonFiniteGuard(TrainerCallback):
    """Count the steps with NaN or infinite gradients, and end a training of nothing else.

    Under loss scaling, a few such steps at the start are skipped and harmless.
    """

    def __init__(self, most_in_a_row: int = MOST_SKIPPED):
        self.most_in_a_row = most_in_a_row
        self.in_a_row = 0
        self.skipped = 0

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the step's gradient norm.

        Raises:
            TrainingError: too many steps in a row without a finite one.
        """
        if not logs or "grad_norm" not in logs:
            return
        if math.isfinite(logs["grad_norm"]):
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.most_in_a_row:
            raise TrainingError(
                f"step {state.global_step}: expected finite gradients, found none in the last "
                f"{self.in_a_row} steps (loss {logs.get('loss')}); lower the learning rate (--set "
                "learning_rate=2e-5), or compute in fp32 (--set use_amp=false) to see if fp16 is "
                "the cause"
            )


class FreeMemory(TrainerCallback):
    """Give the allocator's unused blocks back after each epoch and each evaluation.

    The two have tensors of other shapes.
    """

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.cuda.empty_cache()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.cuda.empty_cache()


def reset_peak_memory() -> None:
    """Measure the GPUs' memory peaks from here on."""
    for gpu in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(gpu)


def peak_memory_gib() -> list[float]:
    """Return the peak of tensors on each GPU, a base that is shared with other folds included.

    Without a GPU, it is the process's largest resident size.
    """
    if not torch.cuda.is_available():
        # KiB on Linux, but bytes on macOS
        resident_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return [round(resident_kib / 2**20, 2)]
    peaks = []
    for gpu in range(torch.cuda.device_count()):
        # Of tensors alone: blocks that the allocator keeps unused do not count
        peak = torch.cuda.max_memory_allocated(gpu) + borrowed_bytes(gpu)
        peaks.append(round(peak / GIB, 2))
    return peaks

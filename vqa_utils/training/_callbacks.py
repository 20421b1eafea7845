"""What happens beside the training's steps: the log, the guard against gradients that are no numbers, versions, free memory."""

import csv
import math
import resource
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import TrainerCallback

from vqa_utils.errors import VqaError

LOG_COLUMNS = [
    "step",
    "max_steps",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "seconds_per_step",
    "memory_gib",
]
MOST_SKIPPED = 20  # steps in a row: a scale of 256 is below one by then, so no scale would help


class TrainingError(VqaError):
    """A training that cannot go on."""


class TrainLog(TrainerCallback):
    """Appends one line a step to train_log.csv, so that a killed run still has its log and the terminal can follow it."""

    def __init__(self, path: Path):
        self.path, self.step_start = path, time.time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A new log; a resumed run keeps the lines up to its checkpoint."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = (
            pd.read_csv(self.path)
            if state.global_step and self.path.exists()
            else pd.DataFrame(columns=LOG_COLUMNS)
        )
        kept[kept["step"] <= state.global_step].to_csv(self.path, index=False)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_start = time.time()

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        measured = {
            "seconds_per_step": round(time.time() - self.step_start, 4),
            "memory_gib": sum(peak_memory_gib()),
        }
        line = {"step": state.global_step, "max_steps": state.max_steps, **logs, **measured}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, LOG_COLUMNS, extrasaction="ignore").writerow(line)


class NonFiniteGuard(TrainerCallback):
    """Counts the steps whose gradients are no numbers, and ends a training that does nothing else.

    Under loss scaling, a few such steps at the start are skipped and harmless.
    """

    def __init__(self, most_in_a_row: int = MOST_SKIPPED):
        self.most_in_a_row, self.in_a_row, self.skipped = most_in_a_row, 0, 0

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
        finite = math.isfinite(logs["grad_norm"])
        self.skipped += not finite
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if self.in_a_row >= self.most_in_a_row:
            raise TrainingError(
                f"step {state.global_step}: expected finite gradients, found none in the last {self.in_a_row} steps (loss "
                f"{logs.get('loss')}); lower the learning rate (--set learning_rate=2e-5), or compute in fp32 (--set "
                "use_amp=false) to see whether fp16 is the cause"
            )


class FreeMemory(TrainerCallback):
    """Gives the allocator's unused blocks back after each epoch and each evaluation, whose shapes differ."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.cuda.empty_cache()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.cuda.empty_cache()


def reset_peak_memory() -> None:
    """Count GPU memory peaks from here."""
    for gpu in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(gpu)


def peak_memory_gib() -> list[float]:
    """The allocator's peak on each GPU; on a CPU, the process's largest resident size."""
    if torch.cuda.is_available():
        return [
            round(torch.cuda.max_memory_allocated(gpu) / 2**30, 2)
            for gpu in range(torch.cuda.device_count())
        ]
    return [round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)]

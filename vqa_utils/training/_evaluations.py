"""Score held-out rows within epochs too; end a training that gets no better."""

import math
from typing import Any

from transformers import TrainerCallback

CLOSE = 1e-6  # epochs: a fraction of steps is not exact


class Evaluations(TrainerCallback):
    """Asks for evaluations within epochs; the Trainer itself evaluates at the end of each.

    It has no state of its own: a resumed training evaluates and ends where the whole one does.

    Attributes:
        every: epochs between evaluations; 1 for none within.
        patience: evaluations without a lower log loss that end the training; 0 never ends it.
    """

    def __init__(self, every: float, patience: int):
        self.every = every
        self.patience = patience

    def comes_next(self, state: Any) -> bool:
        """Tell whether an evaluation within the epoch follows the next step."""
        step = state.epoch / state.global_step  # in epochs
        return self._is_due(state.epoch + step, step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate and save after the steps that are due."""
        if self._is_due(state.epoch, state.epoch / state.global_step):
            control.should_evaluate = True
            control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the training if the last evaluations have all been worse than one before.

        Nothing is saved then: a training that is killed now goes on before its last evaluation, and
        ends in the same way.
        """
        losses = [entry["eval_log_loss"] for entry in state.log_history if "eval_log_loss" in entry]
        since_best = len(losses) - 1 - losses.index(min(losses))
        if self.patience and since_best >= self.patience:
            control.should_training_stop = True
            control.should_save = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave out the evaluation of an epoch that one within has ended."""
        last = state.log_history[-1] if state.log_history else {}
        if last.get("step") == state.global_step and "eval_log_loss" in last:
            control.should_evaluate = False
            control.should_save = False

    def _is_due(self, epoch: float, step: float) -> bool:
        """Tell whether an evaluation within an epoch follows the step that ends at `epoch`."""
        if abs(epoch - round(epoch)) < step / 2:  # the end of an epoch
            return False
        return self._passed(epoch) > self._passed(epoch - step)

    def _passed(self, epoch: float) -> int:
        return math.floor(epoch / self.every + CLOSE)

"""Keep a training's checkpoints whole: name them, find the newest whole one, set torn ones aside."""

import hashlib
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME

from vqa_utils.artifacts.files import read_json, write_json
from vqa_utils.artifacts.manifest import tear, write_manifest
from vqa_utils.artifacts.stop import TRAINING, must_stop, stop_if_asked
from vqa_utils.config import Config
from vqa_utils.model.adapter import name_base_portably
from vqa_utils.training._evaluations import Evaluations

STATE = "trainer_state.json"
ASIDE = "torn"  # the folder for torn checkpoints, beside the whole ones


def training_key(config: Config, train: pd.DataFrame, steps: int | None = None) -> str:
    """Name a training, in 12 hex digits: other settings, rows or answers have another name.

    Args:
        config: its settings.
        train: its rows.
        steps: of a refit that trains for as many as the folds' best adapters.
    """
    described = config.training_hash + train.to_csv(index=False)
    if steps is not None:
        described += f"{steps} steps"
    return hashlib.sha256(described.encode()).hexdigest()[:12]


class Checkpoints(TrainerCallback):
    """A training's checkpoints, in a folder that may have moved since they were written.

    A checkpoint is whole if its manifest says so, and if that of the best epoch so far is whole too,
    which the Trainer reads at the end.
    """

    def __init__(self, folder: Path, evaluations: Evaluations | None = None):
        """Keep checkpoints in `folder`; `evaluations` are those within epochs."""
        self.folder = folder
        self.evaluations = evaluations or Evaluations(every=1, patience=0)

    def newest(self) -> str | None:
        """Find the newest whole checkpoint; set aside what is torn or has a foreign name."""
        problems = {path: self._problem(path) for path in self.folder.glob("checkpoint-*")}
        whole = [path for path, problem in problems.items() if not problem]
        for path in whole:
            if self._best_of(path) not in (None, *whole):
                problems[path] = "the best epoch's checkpoint is torn"
        for path, problem in problems.items():
            if problem:
                self._set_aside(path, problem)
        usable = [path for path in whole if not problems[path]]
        # As a number: as text, checkpoint-1000 comes before checkpoint-200
        return str(max(usable, key=_step)) if usable else None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save before the step that ends in an evaluation, and wherever it was asked to stop.

        After an evaluation, as at the end of an epoch, it is saved once the held-out rows are
        scored, which may take minutes. Until then, a stop costs one step.
        """
        ends_epoch = math.isclose(state.epoch, round(state.epoch))
        ends_training = state.global_step >= state.max_steps
        if ends_epoch or ends_training:
            return
        step = state.epoch / state.global_step  # in epochs
        one_is_left = math.ceil(state.epoch) - state.epoch <= 1.01 * step
        if one_is_left or self.evaluations.comes_next(state) or must_stop(TRAINING):
            control.should_save = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop while held-out rows are scored.

        Raises:
            StopRequested: the training was asked to stop.
        """
        stop_if_asked(TRAINING)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the manifest of a checkpoint, once the Trainer has written all else.

        Then older ones go, but for the best epoch's.

        Raises:
            StopRequested: the training was asked to stop before its last step.
        """
        newest = self._of_step(state.global_step)
        _without_places(newest)
        write_manifest(newest)
        kept = {newest, self._of_step(state.best_global_step or state.global_step)}
        for path in self.folder.glob("checkpoint-*"):
            if path not in kept:
                shutil.rmtree(path)
        if state.global_step < state.max_steps:  # else all that is left is to write the adapter
            stop_if_asked(TRAINING)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Name the best epoch's checkpoint where it is now: the state had the path of its time."""
        if state.best_global_step:
            state.best_model_checkpoint = str(self._of_step(state.best_global_step))

    def _problem(self, path: Path) -> str:
        if not re.fullmatch(r"checkpoint-\d+", path.name):
            return "it has a foreign name"
        return tear(path)

    def _best_of(self, checkpoint: Path) -> Path | None:
        best_step = read_json(checkpoint / STATE)["best_global_step"]
        return self._of_step(best_step) if best_step else None

    def _of_step(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    def _set_aside(self, path: Path, problem: str) -> None:
        aside = self.folder / ASIDE / path.name
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)  # of an earlier stop
        path.rename(aside)
        print(f"{path.name} is left out: {problem}; it is in {aside.parent.name}/ now")


def _without_places(checkpoint: Path) -> None:
    """Leave out what a checkpoint says of its place on this machine, and what nobody reads."""
    name_base_portably(checkpoint)
    state = read_json(checkpoint / STATE)
    state["best_model_checkpoint"] = None  # `on_train_begin` names it by its step
    write_json(checkpoint / STATE, state)
    (checkpoint / TRAINING_ARGS_NAME).unlink(missing_ok=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))

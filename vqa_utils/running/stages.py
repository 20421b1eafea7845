"""List the series: the files of each notebook, and the steps of a command.

Standard library only: `run_all.py --help` answers at once.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_utils.errors import RunError, did_you_mean

FOLDS_FILE = "folds.csv"


@dataclass(frozen=True)
class Stage:
    """A notebook, and its files as patterns below the run's folder ({fold}: the fold's number).

    Names start with a number, in the order of the run: `Config.hash_for` compares them.
    """

    name: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    per_fold: bool = False
    trains: bool = False
    """It depends on the settings of the adapter alone."""


# Files are hashed into markers. Of a pair such as folds.csv and folds*.csv, the first has to be
# there; the second also matches files that may be, such as folds_extra.csv
STAGES = (
    Stage("01_eda"),
    Stage("02_folds", writes=("folds.csv", "folds*.csv")),
    Stage(
        "03_train_fold",
        reads=("folds.csv", "folds*.csv"),
        writes=("fold{fold}/adapter", "fold{fold}/train_log.csv", "fold{fold}/meta.json"),
        per_fold=True,
        trains=True,
    ),
    Stage(
        "04_infer",
        reads=("folds.csv", "fold{fold}/adapter"),
        writes=("fold{fold}/probs_test.csv", "fold{fold}/probs_*.csv"),
        per_fold=True,
    ),
    Stage(
        "05_ensemble",
        reads=("folds.csv", "fold*/probs_*.csv"),
        writes=("ensemble/probs_*.csv", "ensemble/members.json", "submission_*.csv"),
    ),
    Stage(
        "06_analysis",
        reads=(
            "folds.csv",
            "fold*/meta.json",
            "fold*/probs_*.csv",
            "ensemble/probs_oof.csv",
            "ensemble/members.json",
        ),
        # Not index.html: the page is written again and again, through a hidden file beside it
        writes=("report/results.json", "report/[!.]*.[!h]*"),
    ),
)
TRAINING, SCORING, ENSEMBLE, ANALYSIS = STAGES[-4:]

# 04_infer on another test set: it reads the run's adapters, and writes below predict/<folder>/
PREDICTION = Stage(
    SCORING.name, reads=("fold{fold}/adapter",), writes=SCORING.writes, per_fold=True
)


@dataclass(frozen=True)
class Step:
    """A stage, of one fold if the stage has folds."""

    stage: Stage
    fold: int | None = None
    predict: str = ""
    """the folder of another test set to answer; "" for the run's own rows"""

    @property
    def name(self) -> str:
        """The name of its archived notebook and of its marker."""
        return self.stage.name if self.fold is None else f"{self.stage.name}-fold{self.fold}"

    def parameters(self, run_id: str) -> dict[str, Any]:
        """The parameters of the notebook, for papermill."""
        given: dict[str, Any] = {"run_id": run_id}
        if self.fold is not None:
            given["fold"] = self.fold
        if self.predict:
            given["predict"] = self.predict
        return given

    def inputs(self, folder: Path) -> list[Path]:
        """The files to read below `folder`."""
        return self._files(self.stage.reads, folder)

    def outputs(self, folder: Path) -> list[Path]:
        """The files and folders to write below `folder`.

        A pattern without a match yet stands for itself.
        """
        return self._files(self.stage.writes, folder)

    def _files(self, patterns: Sequence[str], folder: Path) -> list[Path]:
        found = []
        for pattern in patterns:
            name = pattern.format(fold=self.fold)
            # Sorted, as the order of glob depends on the file system
            found += sorted(folder.glob(name)) or [folder / name]
        return found


def select_steps(
    stages: Sequence[Stage],
    folds: Sequence[int],
    *,
    chosen: Sequence[int] = (),
    only: str | None = None,
    start: str | None = None,
) -> list[Step]:
    """Select the steps of a command, in the order of the run.

    Args:
        stages: the stages of the series.
        folds: the folds of the run; with a refit, its number too.
        chosen: the folds to run; empty for all.
        only: the one stage to run.
        start: the first stage to run.

    Raises:
        RunError: an unknown fold or stage.
    """
    names = [stage.name for stage in stages]
    problems = []
    for number in chosen:
        if number not in folds:
            numbers = ", ".join(map(str, folds))
            problems.append(f"--folds: expected some of {numbers}, found {number}")
    for name in (only, start):
        if name is not None and name not in names:
            meant = did_you_mean(name, names)
            problems.append(f"stage: expected one of {', '.join(names)}, found {name!r}{meant}")
    if problems:
        raise RunError("\n".join(problems))

    first_stage = only or start
    first = names.index(first_stage) if first_stage else 0
    selected = stages[first : first + 1] if only else stages[first:]
    steps = []
    for stage in selected:
        if stage.per_fold:
            steps += [Step(stage, number) for number in chosen or folds]
        else:
            steps.append(Step(stage))
    return steps


def built_on(steps: Sequence[Step], scored: Sequence[int]) -> list[Step]:
    """The earlier steps to build on: adapters, scores and the ensemble, if not made anew.

    Args:
        steps: the selected steps.
        scored: the adapters with scores.
    """
    selected = [step.stage for step in steps]
    taken = [Step(TRAINING, step.fold) for step in steps if step.stage == SCORING]
    if ENSEMBLE in selected or ANALYSIS in selected:
        taken += [Step(SCORING, number) for number in scored]
    if ANALYSIS in selected:
        taken.append(Step(ENSEMBLE))
    return [step for step in taken if step not in steps]


def due_steps(steps: Sequence[Step], is_reused: Callable[[Step], bool]) -> list[Step]:
    """Select the steps that will be executed: those not reused now, and those built on them.

    A step that is complete may run again, once an earlier one has written other files.
    """
    due: list[Step] = []
    for step in steps:
        if not is_reused(step) or any(_is_built_on(step, earlier) for earlier in due):
            due.append(step)
    return due


def _is_built_on(step: Step, earlier: Step) -> bool:
    if not earlier.stage.writes:
        return False
    return earlier.fold is None or step.fold in (None, earlier.fold)


def next_notebook(step: Step, due: Sequence[Step]) -> str:
    """Name the notebook after a step, if it is of no fold and its kernel can start before; else ""."""
    for earlier, later in itertools.pairwise(due):
        if earlier == step and later.fold is None:
            return later.stage.name
    return ""


def grouped(steps: Sequence[Step]) -> list[list[Step]]:
    """Put neighbouring steps of folds together, and every other step alone."""
    groups: list[list[Step]] = []
    for step in steps:
        if groups and step.stage.per_fold and groups[-1][-1].stage.per_fold:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def predicted_folder(steps: Sequence[Step]) -> str:
    """The folder with another test.csv that all of these steps answer; "" for the run's own."""
    return steps[0].predict if steps else ""


def takes_folds_as_they_are(steps: Sequence[Step]) -> bool:
    """True if steps read the folds and none makes them."""
    reads = any(FOLDS_FILE in step.stage.reads for step in steps)
    writes = any(FOLDS_FILE in step.stage.writes for step in steps)
    return reads and not writes

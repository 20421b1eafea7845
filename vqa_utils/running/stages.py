"""The series as data: what each notebook reads and writes, and which steps a command selects. Standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_utils.errors import RunError


@dataclass(frozen=True)
class Stage:
    """A notebook. `reads` and `writes` are patterns below the run's folder; `{fold}` stands for the fold's number.

    Names start with a number, in the order of the run: a setting counts from the stage on that uses it first. One that `trains`
    depends on the settings of the adapter alone.
    """

    name: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    per_fold: bool = False
    trains: bool = False


@dataclass(frozen=True)
class Step:
    """A stage, of one fold where it has folds."""

    stage: Stage
    fold: int | None = None

    @property
    def name(self) -> str:
        """The name of its archived notebook and of its marker."""
        return self.stage.name if self.fold is None else f"{self.stage.name}-fold{self.fold}"

    def parameters(self, run_id: str) -> dict[str, Any]:
        """What papermill passes to the notebook."""
        return {"run_id": run_id} | ({} if self.fold is None else {"fold": self.fold})

    def inputs(self, run: Path) -> list[Path]:
        """The files that it reads in the run's folder."""
        return self._files(self.stage.reads, run)

    def outputs(self, run: Path) -> list[Path]:
        """The files and folders that it writes; a pattern that matches nothing yet stands for itself."""
        return self._files(self.stage.writes, run)

    def _files(self, patterns: Sequence[str], run: Path) -> list[Path]:
        found = []
        for pattern in patterns:
            name = pattern.format(fold=self.fold)
            found += sorted(run.glob(name)) or [run / name]
        return found


def select_steps(
    stages: Sequence[Stage],
    folds: Sequence[int],
    *,
    chosen: Sequence[int] = (),
    only: str = "",
    start: str = "",
) -> list[Step]:
    """The steps of a run in their order.

    Args:
        folds: the folds of the run, and where it has a refit, that one's number.
        chosen: of these, the ones to run; empty for all.
        only: the one stage to run.
        start: the first stage to run.

    Raises:
        RunError: a fold or a stage that does not exist.
    """
    names = [stage.name for stage in stages]
    problems = [
        f"--folds: expected some of {', '.join(map(str, folds))}, found {k}"
        for k in chosen
        if k not in folds
    ]
    problems += [
        f"stage: expected one of {', '.join(names)}, found {n}"
        for n in (only, start)
        if n and n not in names
    ]
    if problems:
        raise RunError("\n".join(problems))
    selected = (
        [s for s in stages if s.name == only]
        if only
        else stages[names.index(start) if start else 0 :]
    )
    steps = []
    for stage in selected:
        steps += [Step(stage, k) for k in chosen or folds] if stage.per_fold else [Step(stage)]
    return steps

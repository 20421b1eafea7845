"""Say a run's expected end, and keep the run within its time budget."""

import contextlib
import functools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.artifacts.stop import SCORING as SCORING_PHASE
from vqa_utils.artifacts.stop import TRAINING as TRAINING_PHASE
from vqa_utils.artifacts.stop import end_phase, last_life
from vqa_utils.config import Config
from vqa_utils.ensembling.members import scored_adapters
from vqa_utils.errors import RunError
from vqa_utils.forecasting.forecast import RowCounts
from vqa_utils.forecasting.pace import (
    Pace,
    ending_seconds,
    fold_log,
    in_rounds,
    pace_of,
    scoring_seconds,
    side_by_side,
    training_seconds,
)
from vqa_utils.planning.machine.disk import MB, NOTEBOOK_BYTES, checkpoint_bytes, free_bytes
from vqa_utils.running.stages import ANALYSIS, ENSEMBLE, SCORING, TRAINING, Step
from vqa_utils.running.terminal import duration

POLL_SECONDS = 1.0
STALL_SECONDS = 20 * 60.0  # a slow disk takes ten minutes for the base of the 30B
STEPS_TO_STOP = 2  # a stop is heard after the step at work, and leaves time for a checkpoint


@dataclass
class _AtWork:
    """A step that is being executed."""

    step: Step
    archived: Path
    begun: float
    """in seconds since 1970"""
    stalled_since: float = 0.0
    """the last progress before it was named"""


class RunClock:
    """Watches the time of a run, from its driver.

        now                                                                  deadline
        | training ...      | scoring of the trained folds | 05 and 06 | left |
                            ^ training has to end          ^ scoring has to end

    Attributes:
        paths: the run.
        config: its settings.
        console: the terminal.
        rows: of its tables; None if they are not known, and no end is expected.
        deadline: seconds since 1970; None without a budget.
        stall_seconds: without progress, until a step is named.
        at_once: folds at work at a time.
        left_out: steps for which there was no time.
    """

    def __init__(
        self,
        paths: RunPaths,
        config: Config,
        console: Console,
        rows: RowCounts | None = None,
        deadline: float | None = None,
        stall_seconds: float = STALL_SECONDS,
    ):
        self.paths = paths
        self.config = config
        self.console = console
        self.rows = rows
        self.deadline = deadline
        self.stall_seconds = stall_seconds
        self.at_once = 1
        self.left_out: list[Step] = []
        self._ended: set[str] = set()  # phases
        self._due: list[Step] = []
        self._through: set[Step] = set()
        self._is_told = False
        self._told: set[str] = set()  # problems
        self._at_work: dict[str, _AtWork] = {}

    @contextlib.contextmanager
    def watching(self, due: Sequence[Step]) -> Iterator[None]:
        """Watch while steps are executed.

        Args:
            due: those that are not reused.
        """
        self._due = list(due)
        is_over = threading.Event()

        def look() -> None:
            try:
                self.look(time.time())
            except Exception as error:  # the next look counts: a time budget is not lost to one
                self._tell_once(f"the run's time could not be looked at: {error!r}")

        def watch() -> None:
            while not is_over.wait(POLL_SECONDS):
                look()

        thread = threading.Thread(target=watch, daemon=True)
        look()
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    @contextlib.contextmanager
    def working(self, step: Step, archived: Path) -> Iterator[None]:
        """Watch a step while it is executed; a notebook that goes on is written after each cell."""
        self._at_work[step.name] = _AtWork(step, archived, time.time())
        try:
            yield
            self._through.add(step)
        finally:
            del self._at_work[step.name]

    def look(self, now: float) -> None:
        """Say the expected end once it is known, name what hangs, and end what has to end by now."""
        for at_work in list(self._at_work.values()):
            self._name_stalled(at_work, now)
        self._name_low_disk()
        pace = pace_of(self.paths, self.config) if self.rows else None
        if pace and not self._is_told and self._is_training():
            self._tell(now, pace)
            self._is_told = True
        if self.deadline is None:
            return
        scoring_ends = self.deadline - ending_seconds(self.paths)
        if now >= scoring_ends - self._seconds_to_score(pace):
            self._end(TRAINING_PHASE)
        if now >= scoring_ends:
            self._end(SCORING_PHASE)

    def leaves_out(self, step: Step) -> str:
        """Return the reason to leave a step out; "" if there is time for it."""
        reason = self._reason(step)
        if reason:
            self.leave_out(step)
        return reason

    def has_ended(self, step: Step) -> bool:
        """Tell whether the time for steps of this kind is up."""
        phase = TRAINING_PHASE if step.stage.trains else SCORING_PHASE
        return step.fold is not None and phase in self._ended

    def leave_out(self, step: Step) -> None:
        """Note a step for which there is no time, or no more."""
        if step not in self.left_out:
            self.left_out.append(step)

    def conclude(self) -> None:
        """Say for what the time budget was too short.

        Raises:
            RunError: there is nothing to submit.
        """
        if not self.left_out:
            return
        message = (
            f"the time budget is over; left out: {self._describe_left_out()}; "
            f"python run_all.py --resume --run-id {self.paths.run_id} goes on from here"
        )
        if Step(ENSEMBLE) in self.left_out:
            raise RunError(f"no fold is scored, so there is no submission. {message}")
        self.console.print(message, style="yellow", markup=False)

    def _describe_left_out(self) -> str:
        """Name the steps that were left out, and how far their trainings are."""
        return ", ".join(f"{step.name}{self._how_far(step)}" for step in self.left_out)

    def _reason(self, step: Step) -> str:
        if self.has_ended(step):
            return "the time budget has no more time for it"
        if step.stage == SCORING and Step(TRAINING, step.fold) in self.left_out:
            return "its fold is not trained"
        if step.stage not in (ENSEMBLE, ANALYSIS) or not self.left_out:
            return ""
        if not scored_adapters(self.paths, self.config):
            return "no fold is scored"
        return ""

    def _is_training(self) -> bool:
        """Tell whether a fold of this command trains, and for long enough to know its pace."""
        return any(step.stage.trains and self._is_begun(step) for step in self._due)

    def _is_begun(self, step: Step) -> bool:
        fold = self.paths.fold(step.fold or 0)
        return fold_log(fold.train_log) is not None and not fold.meta.exists()

    def _seconds_to_score(self, pace: Pace | None) -> float:
        """Expect the seconds to stop training and to score the folds that are trained by now."""
        if pace is None or self.rows is None:
            return 0.0
        left = [step for step in self._due if step not in self._through]
        scorings = [step for step in left if step.stage == SCORING]
        waiting = [step for step in scorings if Step(TRAINING, step.fold) not in left]
        scoring = scoring_seconds(self.config, self.rows, pace)
        return STEPS_TO_STOP * pace.step + in_rounds(len(waiting), self.at_once, scoring)

    def _seconds_left(self, pace: Pace, rows: RowCounts) -> float:
        """Expect the seconds until all due steps are through."""
        logs = {}
        for step in self._due:
            if step.stage.trains and step.fold is not None and self._is_begun(step):
                logs[step.fold] = fold_log(self.paths.fold(step.fold).train_log)
        max_steps = max(log.max_steps for log in logs.values() if log)
        trainings = []
        for step in self._due:
            if not step.stage.trains or step.fold is None:
                continue
            log = logs.get(step.fold)
            steps = log.max_steps - log.steps if log else max_steps
            seconds = training_seconds(self.config, rows, pace, steps, max_steps)
            trainings.append(seconds if log else pace.start + seconds)
        scorings = sum(step.stage == SCORING for step in self._due)
        scoring = scoring_seconds(self.config, rows, pace)
        ends = any(step.stage in (ENSEMBLE, ANALYSIS) for step in self._due)
        return (
            side_by_side(trainings, self.at_once)
            + in_rounds(scorings, self.at_once, scoring)
            + (ending_seconds(self.paths) if ends else 0)
        )

    def _tell(self, now: float, pace: Pace) -> None:
        assert self.rows is not None  # there is a pace
        end = now + self._seconds_left(pace, self.rows)
        clock = time.strftime("%a %H:%M", time.localtime(end))
        self.console.print(
            f"expected end: {clock}, in {duration(end - now)} "
            f"({pace.step:.2f} s a step were measured)",
            markup=False,
        )
        if self.deadline is not None and end > self.deadline:
            self.console.print(
                f"the time budget ends {duration(end - self.deadline)} earlier: training will "
                "stop in time to score the folds that are trained by then, and to write a submission",
                style="yellow",
                markup=False,
            )

    def _name_stalled(self, at_work: "_AtWork", now: float) -> None:
        """Name a step that makes no progress, once for each time that it stands still."""
        name = at_work.step.name
        seen = max(at_work.begun, last_life(name), _modified(at_work.archived))
        if now - seen <= self.stall_seconds or seen == at_work.stalled_since:
            return
        at_work.stalled_since = seen
        self.console.print(
            f"{name}{self._how_far(at_work.step)} has made no progress for {duration(now - seen)}; "
            "does it hang? Ctrl-C stops the run, and --resume goes on from the last checkpoint",
            style="yellow",
            markup=False,
        )

    def _name_low_disk(self) -> None:
        """Say that the disk may not hold the next checkpoint."""
        if self._at_work and free_bytes(self.paths) < self._least_free:
            self._tell_once(
                f"the disk of {shown(self.paths.folder)} has less than the "
                f"{self._least_free / MB:.1f} MB left that a checkpoint and a notebook may take"
            )

    @functools.cached_property
    def _least_free(self) -> int:
        return checkpoint_bytes(self.config) + NOTEBOOK_BYTES  # reads the model's config.json

    def _tell_once(self, problem: str) -> None:
        if problem not in self._told:
            self._told.add(problem)
            self.console.print(problem, style="yellow", markup=False)

    def _how_far(self, step: Step) -> str:
        if step.fold is None or not step.stage.trains:
            return ""
        log = fold_log(self.paths.fold(step.fold).train_log)
        return f" (at step {log.steps} of {log.max_steps})" if log else ""

    def _end(self, phase: str) -> None:
        if phase not in self._ended:
            end_phase(phase)  # first: where the file cannot be written, the next look tries again
            self._ended.add(phase)


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0

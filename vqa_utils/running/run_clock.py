"""Say a run's expected end, and keep the run within its time budget."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.artifacts.stop import SCORING as SCORING_PHASE
from vqa_utils.artifacts.stop import TRAINING as TRAINING_PHASE
from vqa_utils.artifacts.stop import end_phase
from vqa_utils.artifacts.timings import duration
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
from vqa_utils.running.command_line._types import STALL_SECONDS
from vqa_utils.running.notebooks.progress import Progress
from vqa_utils.running.stages import ANALYSIS, ENSEMBLE, SCORING, TRAINING, Step

POLL_SECONDS = 1.0
STEPS_TO_STOP = 2  # a stop is heard after the step at work, and leaves time for a checkpoint


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
        at_once: counts the folds at work at a time; out of memory makes them fewer.
        left_out: steps for which there was no time.
        begun: steps that were executed, or begun to be.
        through: steps that have been executed, or reused.
        progress: the notebooks at work.
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
        self.at_once: Callable[[], int] = lambda: 1
        self.left_out: list[Step] = []
        self.begun: set[Step] = set()
        self.through: set[Step] = set()
        self.progress = Progress(paths, config, console, stall_seconds)
        self._began = 0.0
        self._due: list[Step] = []
        self._ended: set[str] = set()  # phases
        self._is_told = False
        self._problems: set[str] = set()

    @contextlib.contextmanager
    def watching(self, due: Sequence[Step]) -> Iterator[None]:
        """Watch while steps are executed.

        Args:
            due: those to execute, as far as is known by now.
        """
        self._due = list(due)
        self._began = time.time()
        is_over = threading.Event()

        def look() -> None:
            try:
                self.look(time.time())
            except Exception as error:  # the next look counts: a time budget is not lost to one
                self._tell_problem(error)

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

    def expect(self, due: Sequence[Step]) -> None:
        """Expect these steps and those that are due alone, once earlier ones have been executed."""
        self._due = list(due)

    @contextlib.contextmanager
    def working(self, step: Step, archived: Path) -> Iterator[None]:
        """Watch a step while it is executed into its archived copy."""
        self.begun.add(step)
        with self.progress.working(step, archived):
            yield
        self.through.add(step)

    def expected_end(self, now: float) -> float | None:
        """Expect when all steps are through; None before the pace is known."""
        pace = self._pace()
        if pace is None or self.rows is None:
            return None
        return now + self._seconds_left(pace, self.rows)

    def look(self, now: float) -> None:
        """End what has to end by now; say the expected end, and what stands still."""
        if now >= self._training_ends():
            self._end(TRAINING_PHASE)
        if now >= self._scoring_ends():
            self._end(SCORING_PHASE)
        self.progress.look(now)
        pace = self._pace()
        if pace and self.rows and not self._is_told and self._is_training():
            self._tell(now, pace, self.rows)
            self._is_told = True

    def leaves_out(self, step: Step, now: float) -> str:
        """Return the reason to leave a step out, which is noted; "" if there is time for it."""
        reason = self._reason(step, now)
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
        names = ", ".join(f"{step.name}{self.progress.how_far(step)}" for step in self.left_out)
        message = (
            f"the time budget is over; left out: {names}; "
            f"python run_all.py --resume --run-id {self.paths.run_id} goes on from here"
        )
        if Step(ENSEMBLE) in self.left_out:
            submission = self.paths.submission(self.config.use_kfold)
            earlier = f"; {shown(submission)} is an earlier one" if submission.exists() else ""
            raise RunError(f"no fold is scored, so there is no submission{earlier}. {message}")
        self.console.print(message, style="yellow", markup=False)

    def _reason(self, step: Step, now: float) -> str:
        if self.has_ended(step) or self._is_too_late(step, now):
            return "the time budget has no more time for it"
        if step.stage == SCORING and Step(TRAINING, step.fold) in self.left_out:
            return "its fold is not trained"
        if step.stage not in (ENSEMBLE, ANALYSIS) or not self.left_out:
            return ""
        if not scored_adapters(self.paths, self.config):
            return "no fold is scored"
        return ""

    def _is_too_late(self, step: Step, now: float) -> bool:
        """Tell whether a notebook would only load its model until its time is up."""
        pace = self._pace()
        if pace is None or step.fold is None:
            return False
        ends = self._training_ends() if step.stage.trains else self._scoring_ends()
        return now + pace.start >= ends

    def _scoring_ends(self) -> float:
        """When scoring has to end; never without a budget."""
        if self.deadline is None:
            return float("inf")
        return self.deadline - ending_seconds(self.paths)

    def _training_ends(self) -> float:
        """When training has to end, so that the folds that are trained by now can be scored."""
        pace = self._pace()
        if pace is None or self.rows is None:
            return self._scoring_ends()
        left = self._left()
        scorings = [step for step in left if step.stage == SCORING]
        waiting = [step for step in scorings if Step(TRAINING, step.fold) not in left]
        scoring = scoring_seconds(self.config, self.rows, pace)
        to_stop = STEPS_TO_STOP * pace.step
        trainings = [one for one in self.progress.at_work() if one.step.stage.trains]
        if any(not one.has_shown_life for one in trainings):
            to_stop += pace.start  # a base that is being loaded hears no stop
        return self._scoring_ends() - to_stop - in_rounds(len(waiting), self.at_once(), scoring)

    def _left(self) -> list[Step]:
        return [step for step in self._due if step not in self.through]

    def _pace(self) -> Pace | None:
        return pace_of(self.paths, self.config, self._began) if self.rows else None

    def _is_training(self) -> bool:
        """Tell whether a fold of this command trains, and for long enough to know its pace."""
        return any(step.stage.trains and self._is_begun(step) for step in self._due)

    def _is_begun(self, step: Step) -> bool:
        fold = self.paths.fold(step.fold or 0)
        return fold_log(fold.train_log, self._began) is not None and not fold.meta.exists()

    def _seconds_left(self, pace: Pace, rows: RowCounts) -> float:
        """Expect the seconds until all due steps are through."""
        left = self._left()
        logs = {}
        for step in self._due:
            if step.stage.trains and step.fold is not None:
                logs[step] = fold_log(self.paths.fold(step.fold).train_log)
        max_steps = max((log.max_steps for log in logs.values() if log), default=0)
        trainings = []
        for step in left:
            if step not in logs or not max_steps:
                continue
            log = logs[step] if self._is_begun(step) else None
            steps = log.max_steps - log.steps if log else max_steps
            seconds = training_seconds(self.config, rows, pace, steps, max_steps)
            trainings.append(seconds if log else pace.start + seconds)
        scorings = sum(step.stage == SCORING for step in left)
        scoring = scoring_seconds(self.config, rows, pace)
        ends = any(step.stage in (ENSEMBLE, ANALYSIS) for step in left)
        return (
            side_by_side(trainings, self.at_once())
            + in_rounds(scorings, self.at_once(), scoring)
            + (ending_seconds(self.paths) if ends else 0)
        )

    def _tell(self, now: float, pace: Pace, rows: RowCounts) -> None:
        end = now + self._seconds_left(pace, rows)
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

    def _tell_problem(self, error: Exception) -> None:
        """Say once for each kind of error that the time could not be looked at."""
        if repr(error) not in self._problems:
            self._problems.add(repr(error))
            message = f"the run's time could not be looked at: {error!r}"
            self.console.print(message, style="yellow", markup=False)

    def _end(self, phase: str) -> None:
        if phase not in self._ended:
            end_phase(phase)  # first: where the file cannot be written, the next look tries again
            self._ended.add(phase)

"""Watch notebooks at work: name one that makes no progress, and a disk that is nearly full."""

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.artifacts.stop import last_life
from vqa_utils.artifacts.timings import duration
from vqa_utils.config import Config
from vqa_utils.forecasting.pace import fold_log
from vqa_utils.planning.machine.disk import MB, NOTEBOOK_BYTES, checkpoint_bytes, free_bytes
from vqa_utils.running.stages import Step


@dataclass
class AtWork:
    """A step that is being executed."""

    step: Step
    archived: Path
    begun: float
    """in seconds since 1970"""
    stalled_since: float = 0.0
    """the last progress before it was named"""

    @property
    def has_shown_life(self) -> bool:
        """True once a step of its training, or a batch of its scoring, has ended."""
        return last_life(self.step.name) >= self.begun


class Progress:
    """The notebooks at work.

    Attributes:
        paths: the run.
        config: its settings.
        console: the terminal.
        stall_seconds: without progress, until a step is named.
    """

    def __init__(self, paths: RunPaths, config: Config, console: Console, stall_seconds: float):
        self.paths = paths
        self.config = config
        self.console = console
        self.stall_seconds = stall_seconds
        self._at_work: dict[str, AtWork] = {}
        self._is_disk_told = False

    @contextlib.contextmanager
    def working(self, step: Step, archived: Path) -> Iterator[None]:
        """Watch a step while it is executed.

        Args:
            step: the notebook, and its fold.
            archived: its copy, which is written after each cell.
        """
        self._at_work[step.name] = AtWork(step, archived, time.time())
        try:
            yield
        finally:
            del self._at_work[step.name]

    def at_work(self) -> list[AtWork]:
        """Return the steps that are being executed."""
        return list(self._at_work.values())

    def look(self, now: float) -> None:
        """Name what stands still, and a disk without room for the next checkpoint."""
        for one in self.at_work():
            self._name_stalled(one, now)
        if self._at_work and not self._is_disk_told and free_bytes(self.paths) < self._least_free:
            self._is_disk_told = True
            self._say(
                f"the disk of {shown(self.paths.folder)} has less than the "
                f"{self._least_free / MB:.1f} MB left that a checkpoint and a notebook may take"
            )

    def how_far(self, step: Step) -> str:
        """Say at which step a training is: " (at step 40 of 114)"; "" of other notebooks."""
        if step.fold is None or not step.stage.trains:
            return ""
        log = fold_log(self.paths.fold(step.fold).train_log)
        return f" (at step {log.steps} of {log.max_steps})" if log else ""

    def _name_stalled(self, one: AtWork, now: float) -> None:
        """Name a step once for each time that it stands still."""
        archived = 0.0
        with contextlib.suppress(FileNotFoundError):  # not written yet, or just moved
            archived = one.archived.stat().st_mtime
        seen = max(one.begun, last_life(one.step.name), archived)
        if now - seen <= self.stall_seconds or seen == one.stalled_since:
            return
        one.stalled_since = seen
        self._say(
            f"{one.step.name}{self.how_far(one.step)} has made no progress for "
            f"{duration(now - seen)}; does it hang? Ctrl-C stops the run, and --resume goes on from "
            "the last checkpoint"
        )

    @functools.cached_property
    def _least_free(self) -> int:
        return checkpoint_bytes(self.config) + NOTEBOOK_BYTES  # reads the model's config.json

    def _say(self, problem: str) -> None:
        self.console.print(problem, style="yellow", markup=False)

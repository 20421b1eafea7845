"""Keep the page of a run up to date while its steps are executed; show it in a browser."""

import contextlib
import dataclasses
import os
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from rich.console import Console

from vqa_utils.analysis.page.progress import (
    FAILED,
    FINISHED,
    LEFT_OUT,
    RUNNING,
    STOPPED,
    WAITING,
    PlannedGpu,
    RunProgress,
    read_progress,
    write_progress,
)
from vqa_utils.analysis.page.writing import REFRESH_SECONDS, write_page
from vqa_utils.artifacts.lock import locked
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.places import without_names
from vqa_utils.artifacts.run import outside_folders
from vqa_utils.config import Config
from vqa_utils.errors import RunError
from vqa_utils.planning.machine.gpus import find_gpus, gpu_limits
from vqa_utils.planning.plan import make_plan
from vqa_utils.planning.shapes import shape_of
from vqa_utils.running.archive.html_copies import write_html_copies
from vqa_utils.running.run_clock import RunClock
from vqa_utils.running.stages import ANALYSIS, Step
from vqa_utils.running.terminal.events import tell
from vqa_utils.setting_types import GIB

POLL_SECONDS = 1.0  # until a notebook that has ended is on the page
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # without one, Linux has text browsers alone


class RunPage:
    """Writes how far a run is, and its page, until its block ends.

    A page that cannot be written is named, and the run goes on.
    """

    def __init__(self, paths: RunPaths, clock: RunClock, steps: Sequence[Step], console: Console):
        """Prepare it.

        Args:
            paths: the run.
            clock: of the run: it knows the steps at work.
            steps: of the command.
            console: the terminal.
        """
        self.paths = paths
        self.clock = clock
        self.steps = steps
        self.console = console
        self._started = self._written = time.time()
        self._states: dict[str, str] = {}
        self._gpus: tuple[PlannedGpu, ...] = ()
        self._is_over = threading.Event()
        self._problems: set[str] = set()
        # One thread, which keeps the exception of a write for `_do`
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "RunPage":
        """Write the page of a run that begins."""
        self._do(self._plan_memory)
        self._do(self._write, RUNNING)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the page of a run that has ended, in one way or another."""
        self._is_over.set()
        self._watcher.join()
        if Step(ANALYSIS) in self.clock.through:
            self._do(write_html_copies, self.paths.notebooks)
        if error is None:
            self._do(self._write, STOPPED if self.clock.left_out else FINISHED)
        elif isinstance(error, KeyboardInterrupt):
            self._do(self._write, STOPPED)
        else:
            self._do(self._write, FAILED, str(error) or repr(error))
        self._writer.shutdown()

    def _watch(self) -> None:
        while not self._is_over.wait(POLL_SECONDS):
            is_due = time.time() - self._written >= REFRESH_SECONDS
            if is_due or self._states != self._states_now():
                self._do(self._write, RUNNING)

    def _do(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do work in the writer's thread, and say once for each kind that it has failed."""
        problem = self._writer.submit(work, *arguments).exception()
        if problem is not None and repr(problem) not in self._problems:
            self._problems.add(repr(problem))
            message = f"the run's page could not be written: {problem!r}"
            self.console.print(message, style="yellow", markup=False)

    def _write(self, state: str, message: str = "") -> None:
        now = time.time()
        self._written = now
        self._states = self._states_now()
        expected_end = self.clock.expected_end(now) if state == RUNNING else None
        if expected_end is not None:
            tell(
                self.console,
                "expected_end",
                at=round(expected_end),
                seconds=round(expected_end - now),
            )
        progress = RunProgress(
            state=state,
            started=self._started,
            written=now,
            steps=self._states,
            message=without_names(message, outside_folders(self.paths)),
            expected_end=expected_end,
            gpus=self._gpus,
        )
        write_progress(self.paths, progress)
        write_page(self.paths)

    def _states_now(self) -> dict[str, str]:
        at_work = {one.step for one in self.clock.progress.at_work()}
        states = {}
        for step in self.steps:
            states[step.name] = self._state(step, is_at_work=step in at_work)
        return states

    def _state(self, step: Step, *, is_at_work: bool) -> str:
        if is_at_work:
            return RUNNING
        if step in self.clock.through:
            return FINISHED
        if step in self.clock.left_out:
            return LEFT_OUT
        return STOPPED if step in self.clock.begun else WAITING

    def _plan_memory(self) -> None:
        self._gpus = planned_gpus(self.clock.config)


def planned_gpus(config: Config) -> tuple[PlannedGpu, ...]:
    """Return the memory of each GPU by the plan; nothing without a GPU or a plan."""
    gpus = find_gpus()
    if not gpus or config.device_map != "plan":
        return ()
    plan = make_plan(config, shape_of(config), gpu_limits(config, gpus))
    planned = []
    for gpu, share in zip(gpus, plan.gpus, strict=False):  # `max_memory` may name fewer
        fold = dataclasses.replace(share, folds=1).peaks["training"]
        sizes = [size / GIB for size in (fold, share.total, share.limit)]
        planned.append(PlannedGpu(gpu.name, *sizes))
    return tuple(planned)


def show_in_browser(paths: RunPaths) -> None:
    """Write the page of a run as it is now, and open it where there is a browser."""
    # While a command is at work on the run, it writes the page itself
    with contextlib.suppress(RunError), locked(paths):
        progress = read_progress(paths)
        if progress is not None and progress.state == RUNNING:  # its driver was killed
            write_progress(paths, dataclasses.replace(progress, state=STOPPED))
        write_html_copies(paths.notebooks)
        write_page(paths)
    if sys.platform != "linux" or any(os.environ.get(name) for name in SCREENS):
        webbrowser.open(paths.page.as_uri())

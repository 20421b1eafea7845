"""Print a live line for each running notebook (step, loss, pace, time left), and tables."""

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from vqa_utils.forecasting.pace import LATEST_STEPS
from vqa_utils.running.terminal.events import tell

POLL_SECONDS = 0.5  # a step of the demo takes 0.2 s, of the 30B some seconds
EVENT_SECONDS = 5  # between events of a training's steps
WITH_BARS = 102  # columns; in a narrower terminal a bar takes the room of the times
LINE_SECONDS = 60  # between lines if the output is no terminal (a notebook's `!`, a log file)


class LastStep(NamedTuple):
    """The latest optimizer step of a training."""

    step: int
    max_steps: int
    loss: float
    text: str
    """Such as `step 40/114  loss 0.213  0.19 s/step  0:14 left`; empty before the first step."""


class _LinesOfARun(Progress):
    """The notebooks' lines, and below them one of the whole run while they are at work.

    Attributes:
        whole: returns that line; "" for none.
    """

    whole: Callable[[], str] = str

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the lines, that of the whole run last."""
        yield from super().get_renderables()
        text = self.whole()
        if text:
            yield Text(text, style="dim", no_wrap=True, overflow="ellipsis")

    def stop(self) -> None:
        """Leave the notebooks' lines alone on the terminal."""
        self.whole = str
        if not self.disable:  # rich before 15 would end it with an empty line all the same
            super().stop()


def progress_lines(console: Console, whole: Callable[[], str] = str) -> Progress:
    """Make the live display of notebooks: a context, inside which `follow` adds lines.

    Args:
        console: the terminal.
        whole: returns the line of the whole run; "" for none.
    """
    bar = [BarColumn(20)] if console.width >= WITH_BARS else []
    progress = _LinesOfARun(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        *bar,
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        disable=not console.is_terminal,  # there, `follow` prints a line as a notebook ends
    )
    progress.whole = whole
    return progress


class _Training:
    """Shows the steps of a training that a notebook begins now."""

    def __init__(
        self,
        progress: Progress,
        task: TaskID,
        console: Console,
        name: str,
        fold: int | None,
        log: Path,
    ):
        self.progress = progress
        self.task = task
        self.console = console
        self.name = name
        self.fold = fold
        self.log = log
        self._written_before = _modified(log)
        self._printed = time.time()
        self._told = 0.0
        self._told_step = 0

    def watch(self, stop: threading.Event) -> None:
        """Show each step until the notebook ends, the last one too."""
        is_over = False
        while not is_over:
            is_over = stop.wait(POLL_SECONDS)
            if _modified(self.log) not in (0, self._written_before):  # 0: there is no log yet
                self._show(last_step(self.log), is_over=is_over)

    def _show(self, last: LastStep, *, is_over: bool) -> None:
        now = time.time()
        self.progress.update(self.task, completed=last.step, total=last.max_steps, text=last.text)
        is_due = now - self._printed > LINE_SECONDS
        if last.text and is_due and not self.console.is_terminal:
            self.console.print(f"  {self.name:<22} {last.text}")
            self._printed = now
        if last.step != self._told_step and (is_over or now - self._told >= EVENT_SECONDS):
            self._tell(last)
            self._told = now

    def _tell(self, last: LastStep) -> None:
        tell(
            self.console,
            "training_step",
            fold=self.fold,
            step=last.step,
            max_steps=last.max_steps,
            loss=last.loss,
        )
        self._told_step = last.step


@contextlib.contextmanager
def follow(
    progress: Progress,
    console: Console,
    name: str,
    train_log: Path | None,
    fold: int | None = None,
) -> Iterator[None]:
    """Show a live line for a notebook until the block ends.

    Args:
        progress: of `progress_lines`.
        console: if it is no terminal, it gets a plain line per minute of training, and at the end.
        name: the notebook's.
        train_log: its training log; its steps are shown as soon as the notebook writes to it.
        fold: of the training.
    """
    stop = threading.Event()
    task = progress.add_task(f"{name:<20}", total=None, text="")
    thread: threading.Thread | None = None
    if train_log:
        training = _Training(progress, task, console, name, fold, train_log)
        thread = threading.Thread(target=training.watch, args=(stop,), daemon=True)
        thread.start()
    share = 0  # of the bar
    try:
        yield
        share = 1
    finally:
        stop.set()
        if thread:
            thread.join()  # a later update by it would undo the next line
        if share:
            progress.update(task, completed=1, total=1)
        else:  # it has failed, or was stopped: its bar stays where it is
            progress.update(task, total=progress.tasks[task].total or 1, text="not finished")
        if not console.is_terminal:
            ended = progress.tasks[task]
            elapsed = timedelta(seconds=int(ended.elapsed or 0))
            console.print(f"  {name:<22} {elapsed}  {ended.fields['text']}".rstrip())


def _modified(path: Path) -> int:
    """Return when a file was written, in nanoseconds; 0 without the file."""
    return path.stat().st_mtime_ns if path.exists() else 0


def last_step(train_log: Path) -> LastStep:
    """Read the latest step of a growing training log."""
    contents = train_log.read_text()  # once: it grows meanwhile
    lines = contents.splitlines()
    # A training appends line by line, so only the last one can be incomplete
    is_half_written = lines and lines[-1].count(",") != lines[0].count(",")
    if len(lines) < 2 or is_half_written:
        return LastStep(0, 1, 0.0, "")
    log = pd.read_csv(io.StringIO(contents))
    last = log.iloc[-1]
    step = int(last["step"])
    max_steps = int(last["max_steps"])
    pace = log["seconds_per_step"].tail(LATEST_STEPS).mean()
    minutes, seconds = divmod(int(pace * (max_steps - step)), 60)
    text = (
        f"step {step}/{max_steps}  loss {last['loss']:.3f}  "
        f"{pace:.2f} s/step  {minutes}:{seconds:02d} left"
    )
    return LastStep(step, max_steps, float(last["loss"]), text)

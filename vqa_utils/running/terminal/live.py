"""Print a live line for each running notebook (step, loss, pace, time left), and tables."""

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vqa_utils.forecasting.pace import LATEST_STEPS

POLL_SECONDS = 0.5  # a step of the demo takes 0.2 s, of the 30B some seconds
LINE_SECONDS = 60  # between lines if the output is no terminal (a notebook's `!`, a log file)


class LastStep(NamedTuple):
    """The latest optimizer step of a training."""

    step: int
    max_steps: int
    text: str
    """Such as `step 40/114  loss 0.213  0.19 s/step  0:14 left`; empty before the first step."""


def progress_lines(console: Console) -> Progress:
    """Make the live display of notebooks: a context, inside which `follow` adds lines."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
    )


@contextlib.contextmanager
def follow(
    progress: Progress, console: Console, name: str, train_log: Path | None
) -> Iterator[None]:
    """Show a live line for a notebook until the block ends.

    Args:
        progress: of `progress_lines`.
        console: gets one plain line per minute if it is no terminal.
        name: the notebook's.
        train_log: its training log; its steps are shown as soon as the notebook writes to it.
    """
    written_before = _modified(train_log) if train_log else 0
    stop = threading.Event()
    task = progress.add_task(f"{name:<22}", total=None, text="")

    def watch(log: Path) -> None:
        printed = time.time()
        while not stop.wait(POLL_SECONDS):
            if _modified(log) in (0, written_before):
                continue  # no log yet, or that of an earlier training
            last = last_step(log)
            progress.update(task, completed=last.step, total=last.max_steps, text=last.text)
            is_due = time.time() - printed > LINE_SECONDS
            if last.text and is_due and not console.is_terminal:
                console.print(f"  {name:<22} {last.text}")
                printed = time.time()

    thread: threading.Thread | None = None
    if train_log:
        thread = threading.Thread(target=watch, args=(train_log,), daemon=True)
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
        return LastStep(0, 1, "")
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
    return LastStep(step, max_steps, text)

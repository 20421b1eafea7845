"""What the terminal shows: a line for the running notebook (step, loss, pace, time left), and the results' tables."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from vqa_utils.presets import PRESETS, preset

POLL_SECONDS = 0.5
LINE_SECONDS = 60  # between lines where the output is no terminal (a notebook's `!`, a log file)


def progress_lines(console: Console) -> Progress:
    """The live lines of notebooks that run at the same time; use it as a context, and `follow` for each line."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}"),
    )
    return Progress(*columns, console=console)


@contextlib.contextmanager
def follow(
    progress: Progress, console: Console, name: str, train_log: Path | None
) -> Iterator[None]:
    """Show a line for the notebook `name` until the block ends; `train_log` is followed where it grows meanwhile."""
    before, stop = _modified(train_log), threading.Event()
    task = progress.add_task(f"{name:<22}", total=None, said="")

    def watch() -> None:
        printed = time.time()
        while not stop.wait(POLL_SECONDS):
            if _modified(train_log) not in (0, before):
                step, max_steps, said = last_step(train_log)
                progress.update(task, completed=step, total=max_steps, said=said)
                if not console.is_terminal and said and time.time() - printed > LINE_SECONDS:
                    console.print(f"  {name:<22} {said}")
                    printed = time.time()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        progress.update(task, completed=1, total=1)


def _modified(path: Path | None) -> int:
    return path.stat().st_mtime_ns if path is not None and path.exists() else 0


def last_step(train_log: Path) -> tuple[int, int, str]:
    """Step, number of steps, and a text such as `step 40/114  loss 0.213  0.19 s/step  0:14 left`."""
    lines = train_log.read_text().splitlines()
    if len(lines) < 2 or lines[-1].count(",") != lines[0].count(
        ","
    ):  # no step yet, or a line half written
        return 0, 1, ""
    log = pd.read_csv(train_log)
    last, pace = log.iloc[-1], log["seconds_per_step"].tail(20).mean()
    step, max_steps = int(last["step"]), int(last["max_steps"])
    left = int(pace * (max_steps - step))
    return (
        step,
        max_steps,
        f"step {step}/{max_steps}  loss {last['loss']:.3f}  {pace:.2f} s/step  {left // 60}:{left % 60:02d} left",
    )


def print_presets(console: Console) -> None:
    """Two lines a preset: what it is for, and the settings that matter most."""
    for name, settings in PRESETS.items():
        c = preset(name)
        console.print(f"{name:<13}{settings.for_what}")
        numbers = (
            f"{c.image_side} px, LoRA {c.lora_r}/{c.lora_alpha}, {c.effective_batch} rows a step"
        )
        console.print(
            f"{'':<13}{c.model}, {numbers}, {c.epochs:g} epochs, lr {c.learning_rate:g}",
            style="dim",
        )


def print_table(console: Console, title: str, frame: pd.DataFrame) -> None:
    """A table in the terminal; numbers with at most four digits."""
    table = Table(title=title, title_justify="left")
    for column in frame:
        table.add_column(
            str(column),
            justify="right" if pd.api.types.is_numeric_dtype(frame[column]) else "left",
            overflow="fold",
        )
    for row in frame.itertuples(index=False):
        table.add_row(
            *("" if pd.isna(v) else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row)
        )
    console.print(table)

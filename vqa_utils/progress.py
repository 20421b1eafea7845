"""A bar for work on many items, in a terminal and in a notebook."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

Item = TypeVar("Item")
DELAY_SECONDS = 3  # work that is done by then, such as the demo's, has no bar
UPDATE_SECONDS = 1


def progress(items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
    """Pass `items` on one by one, and show how many of `total` there were once that takes longer than a few seconds.

    A terminal's bar goes away at the end, a notebook keeps the full one as a single output, a log file gets none.
    """
    due, update = time.monotonic() + DELAY_SECONDS, None
    with contextlib.ExitStack() as stack:
        for done, item in enumerate(items, 1):
            if time.monotonic() >= due:
                update = update or stack.enter_context(_bar(total, title))
                update(done)
                due = time.monotonic() + UPDATE_SECONDS
            yield item
        if update:
            update(total)


@contextlib.contextmanager
def _bar(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """What sets the number of items that are done."""
    console = Console()
    if console.is_jupyter:  # rich would need ipywidgets there
        from IPython.display import ProgressBar

        bar = ProgressBar(total)
        bar.display()
        yield lambda done: setattr(bar, "progress", done)
    else:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.update(task, completed=done)

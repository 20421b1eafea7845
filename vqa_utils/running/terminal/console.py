"""Make the terminal that a command prints to."""

import io
import os
import sys
from typing import Any

from rich.console import Console

# Of Jupyter's kernels, Kaggle and Colab: a cell's `!` gives its command a terminal, and the notebook
# keeps each drawing
NOTEBOOKS = ("JPY_PARENT_PID", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG")
WIDTH = 120  # enough for the tables where the width is not known
WARNING = "yellow"
ERROR = "red"
END = "bold"  # the end of a command, which --quiet leaves


class SparseConsole(Console):
    """Prints what has certain styles, and nothing else.

    Attributes:
        kept: the styles.
        tells_events: `events.tell` writes, to the standard output.
    """

    def __init__(self, kept: tuple[str, ...], *, tells_events: bool = False, **options: Any):
        super().__init__(**options)
        self.kept = kept
        self.tells_events = tells_events

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, if the style is kept."""
        if options.get("style") in self.kept:
            super().print(*objects, **options)


def make_console(*, quiet: bool = False, events: bool = False) -> Console:
    """Make a terminal that draws lines anew; plain lines in a notebook, a pipe or a file.

    Args:
        quiet: print warnings, errors and the end alone.
        events: leave the standard output to events; warnings and errors go to the standard error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may have letters that it cannot write
            stream.reconfigure(errors="backslashreplace")
    stream = sys.stderr if events else sys.stdout
    is_live = stream.isatty() and not any(name in os.environ for name in NOTEBOOKS)
    options: dict[str, Any] = {
        "soft_wrap": True,
        "highlight": False,
        "markup": False,  # a name such as "[red]" is printed as it is
        "emoji": False,
        "force_terminal": is_live,
        "width": None if is_live else WIDTH,
    }
    if events:
        return SparseConsole((WARNING, ERROR), tells_events=True, stderr=True, **options)
    if quiet:
        return SparseConsole((WARNING, ERROR, END), **options)
    return Console(**options)

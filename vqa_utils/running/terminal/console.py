"""Make the terminal that a command prints to."""

import io
import os
import sys

from rich.console import Console

# Of Jupyter's kernels, Kaggle and Colab: a cell's `!` gives its command a terminal, and the notebook
# keeps each drawing
NOTEBOOKS = ("JPY_PARENT_PID", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG")
WIDTH = 120  # enough for the tables where the width is not known


def make_console() -> Console:
    """Make a terminal that draws lines anew; plain lines in a notebook, a pipe or a file."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may have letters that it cannot write
        sys.stdout.reconfigure(errors="backslashreplace")
    is_live = sys.stdout.isatty() and not any(name in os.environ for name in NOTEBOOKS)
    return Console(
        soft_wrap=True,
        highlight=False,
        markup=False,  # a name such as "[red]" is printed as it is
        emoji=False,
        force_terminal=is_live,
        width=None if is_live else WIDTH,
    )

"""Free the memory of a model in a notebook, for the next one."""

import gc
from collections.abc import Collection
from typing import Any

import torch
from IPython.core.getipython import get_ipython


def forget(names: dict[str, Any], kept: Collection[str]) -> None:
    """Delete a notebook's names but for some, and free the memory of what they named.

    Args:
        names: its globals.
        kept: those that stay.
    """
    for name in set(names) - set(kept):
        if not name.startswith("_"):  # IPython's own
            del names[name]
    shell = get_ipython()
    if shell is not None:
        shell.displayhook.flush()  # the shown results
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

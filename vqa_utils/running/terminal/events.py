"""Tell a program what a command does: with `--json`, an event a line on the standard output.

The events are listed in vqa_utils/running/README.md.
"""

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config
from vqa_utils.errors import VqaError
from vqa_utils.running.terminal.console import SparseConsole

_writing = threading.Lock()  # folds run side by side


def tell(console: Console, event: str, **fields: Any) -> None:
    """Write an event, if the console is one that tells events.

    A number that is not finite is written as null, as JSON has none.
    """
    if not isinstance(console, SparseConsole) or not console.tells_events:
        return
    line = {"event": event, "time": round(time.time(), 3)}
    for name, value in fields.items():
        is_finite = not isinstance(value, float) or math.isfinite(value)
        line[name] = value if is_finite else None
    with _writing:
        print(json.dumps(line), flush=True)


def tell_started(console: Console, paths: RunPaths, config: Config) -> None:
    """Tell that a run begins or goes on."""
    folder = str(paths.folder.absolute())
    tell(console, "run_started", run=paths.run_id, folder=folder, preset=config.preset)


@contextlib.contextmanager
def telling(
    console: Console, notebook: str, ends_early: tuple[type[VqaError], ...]
) -> Iterator[None]:
    """Tell that a notebook starts, and how it ends.

    Args:
        console: the terminal.
        notebook: its name.
        ends_early: errors after which it goes on later.
    """
    tell(console, "notebook_started", notebook=notebook)
    began = time.time()

    def tell_end(event: str, **fields: Any) -> None:
        seconds = round(time.time() - began, 1)
        tell(console, event, notebook=notebook, seconds=seconds, **fields)

    try:
        yield
    except VqaError as error:
        if isinstance(error, ends_early):
            tell_end("notebook_stopped")
        else:
            tell_end("notebook_failed", message=str(error))
        raise
    except KeyboardInterrupt:
        tell_end("notebook_stopped")
        raise
    tell_end("notebook_finished")

"""Let one command at a time work on a run."""

import contextlib
from collections.abc import Iterator

from filelock import FileLock, Timeout

from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.errors import RunError


@contextlib.contextmanager
def locked(paths: RunPaths) -> Iterator[None]:
    """Keep other commands from a run; the system drops the lock when this process ends.

    Raises:
        RunError: another command has it.
    """
    paths.lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(paths.lock, timeout=0):  # do not wait
            yield
    except Timeout as error:
        raise RunError(
            f"{shown(paths.folder)}: expected no other command at work there, found one; "
            "wait for it (python run_all.py status shows how far it is), stop it, or take "
            "another --run-id"
        ) from error

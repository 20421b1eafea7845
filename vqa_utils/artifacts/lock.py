"""Let one command at a time work on a run."""

import contextlib
import tempfile
from collections.abc import Iterator

from filelock import FileLock, Timeout

from vqa_utils.artifacts.paths import RUNS_VARIABLE, RunPaths, shown
from vqa_utils.errors import RunError


@contextlib.contextmanager
def locked(paths: RunPaths) -> Iterator[None]:
    """Keep other commands from a run; the system drops the lock when this process ends.

    Raises:
        RunError: another command has it, or it cannot be written.
    """
    lock = FileLock(paths.lock, timeout=0)  # do not wait
    try:
        paths.lock.parent.mkdir(parents=True, exist_ok=True)
        folder = paths.folder if paths.folder.exists() else paths.folder.parent
        with tempfile.TemporaryFile(dir=folder):  # its mode says nothing of a mount
            lock.acquire()
    except Timeout as error:
        raise RunError(
            f"{shown(paths.folder)}: expected no other command at work there, found one; "
            "wait for it (python run_all.py status shows how far it is), stop it, or take "
            "another --run-id"
        ) from error
    except OSError as error:
        raise RunError(
            f"{paths.folder}: expected a folder to write into, found one that refuses it "
            f"({error.strerror}); set {RUNS_VARIABLE} to a folder for runs, and --resume-from "
            f"{paths.folder} takes this one over"
        ) from error
    try:
        yield
    finally:
        lock.release()

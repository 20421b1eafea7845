"""Tell of a full disk in one sentence, and leave nothing half-written on it."""

import errno
import re
import shutil
from pathlib import Path

from vqa_utils.artifacts.manifest import tear
from vqa_utils.artifacts.paths import FoldPaths, RunPaths, shown
from vqa_utils.errors import RunError

# As Linux, Rust (safetensors) and torch say it
FULL = re.compile(
    r"No space left on device|os error 28\b|Disk quota exceeded|os error 122\b"
    r"|PytorchStreamWriter failed writing|inline_container.*unexpected pos"
)
MB = 10**6


class DiskFull(RunError):
    """A disk has no room left for a file of the run."""


def is_full(error: BaseException) -> bool:
    """Tell whether an error comes of a full disk, or of a quota."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return FULL.search(str(error)) is not None


def describe_full(folder: Path, run_id: str | None = None) -> str:
    """Say that the disk of a folder is full, and what to do.

    Args:
        folder: on the disk, or a file; it need not be there.
        run_id: of the run to go on with.
    """
    while not folder.is_dir():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    resume = f"--run-id {run_id}" if run_id else ""
    return (
        f"the disk of {shown(folder)} is full: {usage.free / MB:,.1f} of {usage.total / MB:,.0f} MB "
        f"are left; delete what is not needed there, and `python run_all.py --resume {resume}".rstrip()
        + "` goes on from here"
    )


def drop_half_written(fold: FoldPaths) -> None:
    """Delete a fold's checkpoints that are not whole, and an adapter that was not finished.

    Its notebook must have ended.
    """
    for checkpoint in fold.checkpoints.glob("*/checkpoint-*"):
        if tear(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)
    if not fold.meta.exists():
        shutil.rmtree(fold.adapter, ignore_errors=True)


def free_bytes(paths: RunPaths) -> int:
    """Return the free bytes on the disk of a run, whose folder need not be there."""
    folder = paths.folder
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free

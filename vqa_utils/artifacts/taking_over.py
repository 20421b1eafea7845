"""Take a run over from elsewhere: yesterday's output, a copy, a folder that cannot be written."""

import os
import re
import shutil
import stat
from pathlib import Path

from vqa_utils.artifacts.paths import RunPaths, runs_dir, shown
from vqa_utils.artifacts.run import LATEST, RUN_ID
from vqa_utils.errors import RunError
from vqa_utils.setting_types import GIB

DEPTH = 5  # folders below the one that is named, to look for a run in
NO_RUN_OF_ITS_OWN = ("predict", "replaced")  # folders within a run


def take_over_run(source: Path, run_id: str | None = None) -> str:
    """Copy a run to where runs are written; return its name there.

    The copy is complete or not there.

    Args:
        source: the run's folder, or one above it.
        run_id: its name from now on; its folder's own if not given.

    Raises:
        RunError: there is no run or more than one, the name is taken, or the disk lacks room.
    """
    try:
        folder = _run_in(source)
    except OSError as error:
        raise RunError(
            f"--resume-from {source}: expected a folder to read, found {error}"
        ) from error
    if run_id is None and not re.fullmatch(RUN_ID, folder.name):
        raise RunError(
            f"--resume-from {source}: name the run with --run-id, as {folder.name} is none"
        )
    paths = RunPaths(run_id or folder.name)
    if paths.folder.exists():
        raise RunError(
            f"{shown(paths.folder)} is there already: --resume --run-id {paths.run_id} goes on with "
            "it, and another --run-id takes the run over beside it"
        )
    _check_room(folder)
    draft = paths.lock.parent / "taking-over" / f"{paths.run_id}.{os.getpid()}"  # no run yet
    try:
        # Contents alone: in a folder that cannot be written, its files cannot either
        shutil.copytree(folder, draft, copy_function=shutil.copyfile)
        _make_writable(draft)
        draft.rename(paths.folder)
    except OSError as error:  # shutil's own error too
        raise RunError(
            f"--resume-from {source}: expected to copy {folder}, found {error}"
        ) from error
    finally:
        if draft.exists():
            _make_writable(draft)
            shutil.rmtree(draft, ignore_errors=True)
    return paths.run_id


def _make_writable(folder: Path) -> None:
    """Let this user write to a folder and all below it; folders come before what is in them."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | stat.S_IWUSR | (path.is_dir() and stat.S_IXUSR))


def _run_in(source: Path) -> Path:
    """Find the one run in a folder.

    Raises:
        RunError: there is none, or more than one.
    """
    if _is_run(source):
        return source.resolve()
    found = set()
    for depth in range(1, DEPTH + 1):
        for file in source.glob("/".join(["*"] * depth) + "/config.json"):
            within = file.parent.relative_to(source).parts
            is_hidden = any(part.startswith(".") for part in within)
            if _is_run(file.parent) and not is_hidden and not set(within) & set(NO_RUN_OF_ITS_OWN):
                found.add(file.parent.resolve())  # the link `latest` is another name of one
    if len(found) > 1:  # or a copy of one, where a copy made a folder of the link
        found = {folder for folder in found if folder.name != LATEST}
    if len(found) == 1:
        return found.pop()
    seen = ", ".join(map(str, sorted(found))) or "none"
    raise RunError(
        f"--resume-from {source}: expected the folder of one run, with its config.json and "
        f"provenance.json, found {seen}"
    )


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "provenance.json").is_file()


def _check_room(folder: Path) -> None:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    runs_dir().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(runs_dir()).free
    if size > free:
        raise RunError(
            f"{runs_dir()}: expected room for the {size / GIB:.2f} GiB of {folder}, found "
            f"{free / GIB:.2f} GiB free; make room there"
        )

"""Carry changed files to a machine without shared storage, by their names below the runs folder."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from vqa_utils.artifacts.files import write_atomically
from vqa_utils.artifacts.manifest import MANIFEST

CHECKPOINT = "checkpoint-*"  # folders that are carried as a whole, once their manifest is written


@dataclasses.dataclass(frozen=True)
class Changes:
    """What has changed since the last time."""

    written: dict[str, bytes] = dataclasses.field(default_factory=dict)
    """The contents of new and changed files."""
    deleted: tuple[str, ...] = ()

    def apply(self, runs: Path) -> None:
        """Make the same changes below another machine's folder of runs.

        What is new comes first: an older checkpoint goes once the newer one is there.
        """
        for name, contents in self.written.items():
            write_atomically(runs / name, functools.partial(_write, contents=contents))
        for name in self.deleted:
            (runs / name).unlink(missing_ok=True)


class Watch:
    """Finds changed files below a folder of runs."""

    def __init__(self, runs: Path, patterns: Sequence[str]):
        """Watch the files that match the patterns, which are names below `runs`."""
        self._runs = runs
        self._patterns = patterns
        self._seen: dict[str, tuple[int, int]] = {}  # times and sizes

    def changes(self) -> Changes:
        """Collect what has changed since the last call.

        All or nothing: a checkpoint that is deleted meanwhile leaves its changes to the next call.
        """
        try:
            now = self._look()
            changed = [name for name, seen in now.items() if self._seen.get(name) != seen]
            written = {name: (self._runs / name).read_bytes() for name in changed}
        except FileNotFoundError:
            return Changes()
        deleted = tuple(name for name in self._seen if name not in now)
        self._seen = now
        return Changes(written, deleted)

    def _look(self) -> dict[str, tuple[int, int]]:
        found = {}
        for pattern in self._patterns:
            for file in sorted(self._runs.glob(pattern)):
                if file.is_file() and not _is_half_written(file):
                    status = file.stat()
                    name = file.relative_to(self._runs).as_posix()
                    found[name] = (status.st_mtime_ns, status.st_size)
        return found


def _write(file: Path, contents: bytes) -> None:
    file.write_bytes(contents)


def _is_half_written(file: Path) -> bool:
    """Tell whether a file is a temporary one, or of a checkpoint without a manifest."""
    if file.name.startswith("."):
        return True
    checkpoints = [folder for folder in file.parents if folder.match(CHECKPOINT)]
    return any(not (folder / MANIFEST).exists() for folder in checkpoints)

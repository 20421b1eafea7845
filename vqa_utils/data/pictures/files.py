"""Look at a picture's file before it is opened: devices, pipes and kernel files are never read."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from vqa_utils.errors import VqaError

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
KERNEL_FOLDERS = (Path("/proc"), Path("/sys"))  # files there are made when read, some without end


class PictureError(VqaError):
    """A file that cannot be read as a picture."""

    def __init__(self, path: Path, problem: str):
        """Make an error.

        Args:
            path: the file.
            problem: begins with "found", and has what to do if that is not plain.
        """
        super().__init__(f"{path}: expected an image, {problem}")
        self.problem = problem


class Stamp(NamedTuple):
    """What changes when a file does. A copy keeps bytes and mtime, but has its own ctime."""

    bytes: int
    mtime_ns: int
    ctime_ns: int


def stamp_of(path: Path) -> Stamp:
    """Return a file's stamp without opening it.

    Raises:
        PictureError: there is no such file, or it is none that can hold a picture.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # missing, or no name: too long, or with a null byte
        raise PictureError(path, "found no file") from error
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise PictureError(path, f"found {KINDS.get(kind, 'something else')}, no file")
    if status.st_dev in _kernel_devices():
        raise PictureError(path, "found a file of the system's kernel")
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def stamp_if_any(path: Path) -> Stamp | None:
    """Return a file's stamp; None where `stamp_of` raises."""
    try:
        return stamp_of(path)
    except PictureError:
        return None


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """Open a file that can hold a picture.

    Raises:
        PictureError: it cannot be opened or read.
    """
    stamp_of(path)
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:  # no right to read it, or a disk that fails
        problem = f"found a file that cannot be read ({error.strerror})"
        raise PictureError(path, problem) from error


@cache
def _kernel_devices() -> list[int]:
    """The numbers of the file systems that the kernel makes up."""
    root = Path("/").stat().st_dev
    devices = [folder.stat().st_dev for folder in KERNEL_FOLDERS if folder.exists()]
    return [device for device in devices if device != root]

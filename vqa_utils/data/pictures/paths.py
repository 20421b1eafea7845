"""Find the picture files that rows name: below the data folder, and nowhere else."""

import contextlib
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

LONGEST_NAME = 255  # bytes, on the usual file systems
LONGEST_ROW_PATH = 2048  # bytes; Linux takes 4,096, with the folder's
LONGEST_SHOWN = 80  # characters of a path in a message
NAMES_SHOWN = 4  # of files that may be meant
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# A picture's contents in place of its name: after a head, as in web pages, or alone
BASE64 = re.compile(
    r"data:[\w/+.-]*;base64,|(?=.*[A-Z])(?=.*[a-z])(?=.*\d)[A-Za-z0-9+/\s]{200,}={0,2}$", re.DOTALL
)
DRIVE = re.compile(r"[a-z]:[\\/]", re.IGNORECASE)
ENDING = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?)$")  # of a name without capitals
NO_FILE = "found no file"
Parts = tuple[str, ...]  # the names on the way from a folder to a file


class Found(NamedTuple):
    """The file of a row's path."""

    file: str
    """Relative to the folder, with `/`; the path itself if there is no such file."""
    problem: str = ""
    """Completes "expected an image"; empty if there is one file."""
    is_refused: bool = False
    """The path leads out of the folder, or can be no path: nothing may open it."""
    is_alike: bool = False
    """The file's name is not the row's, but alike."""


class PictureFolder:
    """Finds files below a folder; lists each directory once."""

    def __init__(self, folder: Path, start: Path | None = None):
        """Take a folder.

        Args:
            folder: no file outside of it is found; it may be a link itself.
            start: the directory in it that paths are relative to; the folder if not given.
        """
        self.root = Path(os.path.realpath(folder))
        self._start = Path(os.path.realpath(start or folder)).relative_to(self.root).parts
        self._directories: dict[Parts, _Directory] = {}

    def find(self, path: str, *, alike: bool = True) -> Found:
        r"""Find the file of a row's path, or else the one file with a name alike.

        Args:
            path: may be absolute, have `..` or go through links, but has to end below the folder.
            alike: take a name that differs in what copies and other systems change: the Unicode
                form, spaces at its ends, `\` for `/`, capitals, the ending.
        """
        is_too_long = _longest_name(path) > LONGEST_NAME or _bytes(path) > LONGEST_ROW_PATH
        if "\0" in path or BASE64.match(path) or is_too_long:
            return Found(path, _describe_no_file(path), is_refused=True)
        found = self._find_exactly(path)
        if found.problem == NO_FILE and alike:
            found = self._find_alike(path)
        if found.problem == NO_FILE:
            return found._replace(problem=_describe_no_file(path))
        return found

    def _find_exactly(self, path: str) -> Found:
        parts = self._parts(path)
        if parts is None:
            return _refused(path, self._real(path))
        if not parts or parts[-1] not in self._directory(parts[:-1]).links:
            return Found(path, NO_FILE)
        return self._found(path, parts)

    def _find_alike(self, path: str) -> Found:
        slashed = path.replace("\\", "/")
        parts = self._parts(slashed)
        if parts is None:
            return _refused(path, self._real(slashed))
        places: list[Parts] = [()]
        for part in parts:
            longer: list[Parts] = []
            for place in places:
                longer += [(*place, name) for name in self._directory(place).alike(part)]
            places = longer
        files = [place for place in places if not self.root.joinpath(*place).is_dir()]
        if not files:
            return Found(path, NO_FILE)
        if len(files) > 1:
            return Found(path, f"found {len(files)} files that may be meant: {_listed(files)}")
        return self._found(path, files[0])._replace(is_alike=True)

    def _parts(self, path: str) -> Parts | None:
        """The way from the folder to a path's file; None if it leads out."""
        parts = tuple(part for part in path.split("/") if part not in ("", "."))
        if path.startswith("/") or ".." in parts:
            real = self._real(path)
            return real.relative_to(self.root).parts if self._has(real) else None
        parts = (*self._start, *parts)
        # The links on the way are followed once for each directory
        return parts if self._directory(parts[:-1]).is_inside else None

    def _found(self, path: str, parts: Parts) -> Found:
        """Take a file that is there, unless it is a link that leads out."""
        if self._directory(parts[:-1]).links[parts[-1]]:
            real = self._real("/".join((str(self.root), *parts)))
            if not self._has(real):
                return _refused(path, real)
        return Found("/".join(parts))

    def _directory(self, parts: Parts) -> "_Directory":
        if parts not in self._directories:
            self._directories[parts] = _Directory(self.root.joinpath(*parts), self.root)
        return self._directories[parts]

    def _real(self, path: str) -> Path:
        """A path without links and `..`, whether there is a file or not."""
        return Path(os.path.realpath(self.root.joinpath(*self._start, path)))

    def _has(self, real: Path) -> bool:
        return real.is_relative_to(self.root)


class _Directory:
    """The names in a directory; none if it is not there, or not below the root."""

    def __init__(self, directory: Path, root: Path):
        self.is_inside = Path(os.path.realpath(directory)).is_relative_to(root)
        self.links: dict[str, bool] = {}
        """by name, if it is a link"""
        self._by_plain_name: dict[str, list[str]] = {}
        if self.is_inside:
            with contextlib.suppress(OSError), os.scandir(directory) as entries:
                self.links = {entry.name: entry.is_symlink() for entry in entries}

    def alike(self, name: str) -> list[str]:
        """The names that are the same in their plain form, sorted."""
        if not self._by_plain_name:
            for other in sorted(self.links):
                self._by_plain_name.setdefault(_plain(other), []).append(other)
        return self._by_plain_name.get(_plain(name), [])


def locate(paths: pd.Series, find: Callable[[str], Found]) -> pd.DataFrame:
    """Find the files of rows.

    Args:
        paths: of the rows.
        find: such as `PictureFolder.find`; asked once for each path.

    Returns:
        `path` and the fields of `Found`, one line per row, indexed as the rows.
    """
    found = {path: find(path) for path in dict.fromkeys(paths)}
    located = pd.DataFrame([found[path] for path in paths], paths.index, Found._fields)
    return located.assign(path=paths)


def beside_or_in(table: Path, folder: PictureFolder) -> Callable[[str], Found]:
    """Make a search for the pictures of a CSV that may lie outside of the data folder.

    Paths are relative to the CSV's directory, or else to the data folder. A file has to lie below
    one of the two. It is given with its absolute path.
    """
    start = Path(os.path.realpath(table.parent))
    # In the data folder, a CSV's paths may lead to pictures beside its directory
    is_in_data = start.is_relative_to(folder.root)
    beside = PictureFolder(folder.root, start) if is_in_data else PictureFolder(start)

    def find(path: str) -> Found:
        for alike in (False, True):
            for place in (beside, folder):
                found = place.find(path, alike=alike)
                if not found.problem:
                    return found._replace(file=str(place.root / found.file))
        return beside.find(path)._replace(file=str(start / path))

    return find


def describe_alike(located: pd.DataFrame) -> str:
    """Say how many pictures have another name than their rows say, with an example.

    Args:
        located: of `locate`, with at least one such picture.
    """
    renamed = located[located["is_alike"]].drop_duplicates("path")
    path, file = renamed.iloc[0][["path", "file"]]
    # Both forms of one text look the same
    is_same = unicodedata.normalize("NFC", path) == unicodedata.normalize("NFC", file)
    form = " (another Unicode form)" if is_same else ""
    return (
        f"{len(renamed)} pictures are named otherwise than in their rows, and one file alone may be "
        f"meant each time, such as {_shown(file)} for {_shown(path)}{form}"
    )


def _plain(name: str) -> str:
    """A name without what copies and other systems change."""
    letters = unicodedata.normalize("NFD", name.casefold())
    return ENDING.sub("", letters.strip()).rstrip()


def _longest_name(path: str) -> int:
    """Bytes of the longest name on a path."""
    return max(_bytes(name) for name in path.split("/"))


def _bytes(name: str) -> int:
    return len(name.encode("utf-8", "surrogatepass"))


def _refused(path: str, real: Path) -> Found:
    problem = f"found one that leads out of the data folder, to {str(real)!r}"
    return Found(path, problem, is_refused=True)


def _describe_no_file(path: str) -> str:
    if "\0" in path:
        return "found a NUL in its path"
    if URL.match(path):
        return "found a URL; the picture has to be a file in the data folder"
    if BASE64.match(path):
        return f"found {len(path):,} characters of base64; the picture has to be a file"
    if DRIVE.match(path):
        return "found a path of Windows; it has to be relative to the data folder"
    longest = _longest_name(path)
    if longest > LONGEST_NAME:
        return f"found a name of {longest:,} bytes, expected at most {LONGEST_NAME}"
    if _bytes(path) > LONGEST_ROW_PATH:
        return f"found a path of {_bytes(path):,} bytes, expected at most {LONGEST_ROW_PATH:,}"
    return NO_FILE


def _listed(files: list[Parts]) -> str:
    names = [_shown("/".join(parts)) for parts in files[:NAMES_SHOWN]]
    more = len(files) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _shown(path: str) -> str:
    return repr(path if len(path) <= LONGEST_SHOWN else f"{path[:LONGEST_SHOWN]}...")

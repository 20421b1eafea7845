"""Files between stages: written whole or not at all, checked when they are read, with their origin recorded."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from vqa_utils.errors import VqaError


class ArtifactError(VqaError):
    """A file between two stages is missing or is not what its reader expects."""


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a temporary file beside `path`, then move it there: no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with every script readable."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a CSV file atomically, without an index."""
    write_atomically(path, lambda temporary: frame.to_csv(temporary, index=False))


def sha256(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of all files below a folder, as hex."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    names = [
        f"{file.relative_to(path)} {sha256(file)}"
        for file in sorted(path.rglob("*"))
        if file.is_file()
    ]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def hashes(paths: Iterable[Path], base: Path) -> dict[str, str]:
    """SHA-256 by path (relative to `base` where it lies below); a missing file has the value "missing"."""
    return {
        str(path.relative_to(base) if path.is_relative_to(base) else path): sha256(path)
        if path.exists()
        else "missing"
        for path in paths
    }


def ids_hash(ids: Iterable[str]) -> str:
    """16 hex digits that name a list of rows."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]

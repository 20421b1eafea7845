"""Write files between stages, complete or not at all, and hash them."""

import csv
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_utils.artifacts.paths import shown
from vqa_utils.artifacts.places import located, portable
from vqa_utils.config import PLACES, Config, from_dict, to_dict
from vqa_utils.errors import VqaError
from vqa_utils.setting_types import ConfigError

if TYPE_CHECKING:
    import pandas as pd

MISSING = "missing"  # in place of the hash of a file that is not there
MADE_AGAIN = "delete it, and python run_all.py --resume makes it again"
# What a spreadsheet takes for a formula (OWASP, "CSV Injection"), but for a number. Apostrophes before
# it count, so that the one that `write_sheet` sets is always the first
FORMULA = re.compile(r"'*(?![+-]?[\d.,]+(e[+-]?\d+)?$)[=+\-@\t\r\n＝＋－＠]", re.IGNORECASE)
ID_DIGITS = 16  # hex digits of a hash that only has to tell lists of rows apart


class ArtifactError(VqaError):
    """A file between two stages is missing or breaks its contract."""


class TornFile(ArtifactError):
    """A file that is empty or ends in the middle, as after a full disk or a copy that stopped."""


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a temporary file beside `path`, then move it there.

    No reader ever sees half a file: a move within one folder happens at once or not at all. A
    failure leaves nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside it: a move to another disk would copy; with the thread, as several may write it
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}")
    try:
        write(temporary)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())  # else a power failure can keep the move and lose the contents
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_current(copy: Path, source: Path) -> bool:
    """Tell whether a copy is there, and not older than its source."""
    return copy.exists() and copy.stat().st_mtime >= source.stat().st_mtime


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with every script readable."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *, mend: str = MADE_AGAIN) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        mend: what to do if it is torn.

    Raises:
        TornFile: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise _torn(path, f"JSON, found something else ({error})", mend) from error


def read_table(
    path: Path, columns: Sequence[str] = (), *, mend: str = MADE_AGAIN, **options: Any
) -> "pd.DataFrame":
    """Read a CSV file that `write_csv` wrote.

    Args:
        path: the file.
        columns: that it has to have.
        mend: what to do if it is torn.
        options: of `pandas.read_csv`.

    Raises:
        TornFile: it is no CSV, ends within a line, or lacks a column.
    """
    import pandas as pd  # 30 MB, which processes that only run notebooks need not have

    if not path.read_bytes().endswith(b"\n"):
        raise _torn(path, "whole lines, found an end within one", mend)
    try:
        table = pd.read_csv(path, **options)
    except ValueError as error:  # lines of other lengths, or no UTF-8
        raise _torn(path, f"a table, found something else ({error})", mend) from error
    if not set(columns) <= set(table):
        raise _torn(path, f"the columns {list(columns)}, found {list(table)}", mend)
    return table


def _torn(path: Path, expected_and_found: str, mend: str) -> TornFile:
    size = f"{path.stat().st_size:,} bytes"
    return TornFile(f"{shown(path)} ({size}): expected {expected_and_found}; {mend}")


def settings_to_json(config: Config) -> dict[str, Any]:
    """Turn settings into JSON values, with paths that say nothing of this machine's people."""
    values = to_dict(config)
    return values | {name: portable(values[name]) for name in PLACES}


def settings_of(values: dict[str, Any], file: Path) -> Config:
    """Turn JSON values of `settings_to_json` into settings.

    A model stays as it is written: its name counts for what depends on it, wherever it lies.

    Raises:
        ConfigError: they are of another version of the code; with the file that they are from.
    """
    try:
        places = [name for name in PLACES if name != "model" and isinstance(values.get(name), str)]
        here = {name: located(values[name]) for name in places}
        return from_dict(values | here)
    except ConfigError as error:
        raise ConfigError(f"{shown(file)}: {error}") from error


def write_csv(path: Path, frame: "pd.DataFrame") -> None:
    """Write a CSV file atomically, without an index, every value as it is.

    For files that a stage or Kaggle reads: they compare ids.
    """
    write_atomically(path, lambda temporary: frame.to_csv(temporary, index=False))


def write_sheet(path: Path, frame: "pd.DataFrame") -> None:
    """Write a CSV file atomically for people, whose spreadsheet runs no text of it as a formula.

    Such a text gets an apostrophe before it, which `from_sheet` takes away.
    """
    plain = frame.map(lambda cell: f"'{cell}" if is_formula(cell) else cell)
    # All texts in quotes: Python's csv leaves a lone \r bare, which ends a line elsewhere
    quotes = csv.QUOTE_NONNUMERIC
    write_atomically(path, lambda temporary: plain.to_csv(temporary, index=False, quoting=quotes))


def from_sheet(text: str) -> str:
    """Return a text as it was before `write_sheet`."""
    return text[1:] if text.startswith("'") and is_formula(text[1:]) else text


def is_formula(cell: object) -> bool:
    """Tell whether a spreadsheet would run a cell; a number such as -0.5 it does not."""
    return isinstance(cell, str) and FORMULA.match(cell) is not None


def sha256(path: Path) -> str:
    """The SHA-256 of a file as hex; of a folder, over the names and hashes of all its files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    # Sorted, as rglob has the order of the file system
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    lines = [f"{file.relative_to(path)} {sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hashes(paths: Iterable[Path], base: Path) -> dict[str, str]:
    """The SHA-256 of files and folders by their path, relative to `base` if they lie below it."""
    found = {}
    for path in paths:
        is_below = path.is_relative_to(base)
        name = str(path.relative_to(base)) if is_below else portable(str(path))
        found[name] = sha256(path) if path.exists() else MISSING
    return found


def ids_hash(ids: Iterable[str]) -> str:
    """Name a list of rows by 16 hex digits."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:ID_DIGITS]

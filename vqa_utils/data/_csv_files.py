"""Read CSV files of any common encoding as text; collect problems by file and line."""

import csv
import io
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

UTF_8 = "utf-8-sig"  # with or without a BOM
KOREAN = "cp949"  # what Korean Windows writes
# Of the letters beyond ASCII, so many have to be common Hangul. CP949 reads the bytes of Japanese
# and Western code pages too, as rare syllables and Chinese characters
LEAST_KOREAN = 0.8
DELIMITERS = ("\t", ";")  # in place of commas, where the head has none
ROUNDED = r"\d[.,]?\d*[eE]\+\d+"  # 202511000000123 as a spreadsheet shows it
INVISIBLE = "[\u00a0\u00ad\u200b-\u200f\u2028-\u202f\u2060\ufeff]"  # spaces and marks of no width
AS_TEXT: dict[str, Any] = {"dtype": str, "keep_default_na": False}  # "None", "01" stay options
TOO_WIDE = "expected {} cells, found more; put texts with commas in quotes"
csv.field_size_limit(2**31 - 1)  # its own limit is 128 KiB, and pandas has none
SHOWN = 12  # problems listed of a kind; the rest is counted


class _Table(NamedTuple):
    frame: pd.DataFrame
    has_cells_without_column: bool
    """Some row is wider than the head; pandas drops its last cells with a warning."""


def read_rows(
    folder: Path, name: str, columns: tuple[str, ...], problems: list[str]
) -> pd.DataFrame:
    """Read the columns of a CSV file, all cells as text.

    Args:
        folder: holds the file; an absolute `name` needs none.
        columns: those to read; a column `image` counts as `path`.
        problems: gets a line for each problem of the file.

    Returns:
        The table with exactly these columns; without rows if the file cannot be read as one.
    """
    nothing = pd.DataFrame(columns=list(columns), dtype=str)
    if not (folder / name).is_file():
        problems.append(f"{name}: expected a file, found none")
        return nothing
    text = decoded((folder / name).read_bytes())
    if text is None:
        problems.append(f"{name}: expected UTF-8 or Korean CP949, found neither; save it as UTF-8")
        return nothing
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        problems.append(f"{name} line {line}: expected text, found a NUL byte; save it as UTF-8")
        return nothing
    try:
        table = _table_of(text)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        expected = "expected comma-separated rows (texts with commas in quotes)"
        problems.append(f"{name}: {expected}, found: {str(error).strip()}")
        return nothing
    twice = _columns_twice(text)
    if twice:
        problems.append(f"{name}: expected each column once, found {', '.join(twice)} again")
        return nothing
    frame = table.frame.rename(columns=str.strip)
    if "path" not in frame:
        frame = frame.rename(columns={"image": "path"})
    missing = [column for column in columns if column not in frame]
    if missing:
        problems.append(
            f"{name}: expected the columns {', '.join(columns)}; "
            f"lacks {', '.join(missing)}, found {', '.join(frame)}"
        )
        return nothing
    if frame.empty:
        problems.append(f"{name}: expected rows, found none")
    if table.has_cells_without_column:
        problems += _too_wide(folder, name, frame, text)
    if "id" in columns:
        problems += _spoilt_ids(folder, name, frame)
    return frame[list(columns)]


def decoded(contents: bytes) -> str | None:
    """Decode a file's bytes: UTF-8, or Korean text of Windows; None for other code pages."""
    try:
        return contents.decode(UTF_8)
    except UnicodeDecodeError:
        pass
    try:
        text = contents.decode(KOREAN)
    except UnicodeDecodeError:
        return None
    letters = Counter(character for character in text if ord(character) > 127)
    common = sum(count for letter, count in letters.items() if _is_common_korean(letter))
    return text if common >= LEAST_KOREAN * letters.total() else None


def _is_common_korean(letter: str) -> bool:
    """Tell whether a character is a common syllable, or a sign; of KS X 1001, without hanja."""
    lead, trail = letter.encode(KOREAN)
    return 0xA1 <= lead <= 0xC8 and trail >= 0xA1


def _delimiter_of(text: str) -> str:
    head = text.lstrip().partition("\n")[0]
    found = [delimiter for delimiter in DELIMITERS if delimiter in head]
    return found[0] if found and "," not in head else ","


def _table_of(text: str) -> _Table:
    with warnings.catch_warnings(record=True, action="always") as warned:
        # index_col=False: with wider rows, pandas would take the first column as the index
        frame = pd.read_csv(io.StringIO(text), **AS_TEXT, sep=_delimiter_of(text), index_col=False)
    return _Table(frame, bool(warned))


def _columns_twice(text: str) -> list[str]:
    """Name the columns that the head has twice; pandas would give the second another name."""
    head = next(csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=_delimiter_of(text)))
    counts = Counter(column.strip() for column in head)
    return [column for column, count in counts.items() if count > 1 and column]


def _spoilt_ids(folder: Path, name: str, frame: pd.DataFrame) -> list[str]:
    """Describe the rows whose id a spreadsheet or a copy has changed."""
    ids = frame["id"]
    rounded = "id {id}: expected it as it was given, found it rounded by a spreadsheet"
    spaced = "id {id!r}: expected it as it was given, found invisible spaces in it"
    is_spaced = ids.str.contains(INVISIBLE) | (ids != ids.str.strip())
    return [
        *row_problems(folder, name, frame, ids.str.fullmatch(ROUNDED), rounded),
        *row_problems(folder, name, frame, is_spaced & (ids.str.strip() != ""), spaced),
    ]


def _too_wide(folder: Path, name: str, frame: pd.DataFrame, text: str) -> list[str]:
    """Name the rows with texts beyond the last column. Commas at the ends of lines are no text."""
    problem = TOO_WIDE.format(frame.shape[1])
    source = io.StringIO(text)
    try:
        cells = pd.read_csv(source, **AS_TEXT, sep=_delimiter_of(text), header=None, skiprows=1)
    except pd.errors.ParserError:  # the head takes more than one line
        return [f"{name}: {problem}"]
    beyond = cells.iloc[:, frame.shape[1] :]
    return row_problems(folder, name, frame, (beyond != "").any(axis=1), problem)


def row_problems(
    folder: Path, name: str, frame: pd.DataFrame, wrong: pd.Series, template: str
) -> list[str]:
    """Describe each wrong row on a line of its own, with its line number in the file.

    Args:
        folder: holds the file; an absolute `name` needs none.
        frame: all rows of the file, in their order.
        wrong: bool, indexed as `frame`.
        template: the words, with columns in braces.

    Returns:
        One line per row; past `SHOWN` the rest is counted.
    """
    rows = frame[wrong]
    if rows.empty:
        return []
    starts = _first_lines(folder / name)
    lines = []
    for position, row in rows.head(SHOWN).to_dict("index").items():
        lines.append(f"{name} line {starts[position]}: {template.format(**row)}")
    if len(rows) > SHOWN:
        lines.append(f"{name}: {len(rows) - SHOWN} more rows like the last")
    return lines


def _first_lines(path: Path) -> list[int]:
    """The line on which each row below the head starts, [rows].

    A text in quotes may go over several lines, and an empty line is no row:

        1  id,question        the head
        2                     no row
        3  r0,"a question     row 0
        4  of two lines"
        5  r1,another         row 1         -> [3, 5]
    """
    text = decoded(path.read_bytes()) or ""  # `read_rows` has read it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter_of(text))
    starts = []
    start = 1
    for cells in reader:
        # As pandas: a blank line is skipped, a line of commas alone is a row
        is_row = len(cells) > 1 or any(cell.strip() for cell in cells)
        if is_row:
            starts.append(start)
        start = reader.line_num + 1  # line_num counts lines within quotes too
    return starts[1:]

"""Read CSV files of any common encoding as text; collect problems by file and line."""

import csv
import io
import re
import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd

UTF_8 = "utf-8-sig"  # with or without a BOM
KOREAN = "cp949"  # what Korean Windows writes
# Of the letters beyond ASCII, so many have to be common Hangul. CP949 reads the bytes of Japanese
# and Western code pages too, as rare syllables and Chinese characters
LEAST_KOREAN = 0.8
DELIMITERS = ("\t", ";")  # in place of commas, where the head has none
ROUNDED = r"\d[.,]?\d*[eE]\+\d+"  # 202511000000123 as a spreadsheet shows it
# Spaces, marks of no width, and control characters such as a line break
INVISIBLE = "[\u00a0\u00ad\u200b-\u200f\u2028-\u202f\u2060\ufeff\x00-\x1f\x7f-\x9f]"
csv.field_size_limit(2**31 - 1)  # its own limit of a cell is 128 KiB
SHOWN = 12  # problems listed of a kind; the rest is counted
LONGEST_SHOWN = 300  # characters of a cell


class _Table(NamedTuple):
    """A file's cells, as text."""

    head: list[str]
    """The columns' names; [] of a file without text."""
    rows: list[list[str]]
    lines: list[int]
    """The line on which each row starts, [rows]."""


class _NotATableError(Exception):
    """A file cannot be read as a table; the words complete its name."""


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
    try:
        text = _text_of(folder / name)
        table = _table_of(text)
    except _NotATableError as error:
        problems.append(f"{name}{error}")
        return nothing
    head = table.head
    if "path" not in head:
        head = ["path" if column == "image" else column for column in head]
    twice = [column for column, count in Counter(head).items() if count > 1 and column]
    if twice:
        problems.append(f"{name}: expected each column once, found {', '.join(twice)} again")
        return nothing
    missing = [column for column in columns if column not in head]
    if missing:
        problems.append(
            f"{name}: expected the columns {', '.join(columns)}; "
            f"lacks {', '.join(missing)}, found {', '.join(head) or 'no text'}"
        )
        return nothing
    if not table.rows:
        problems.append(f"{name}: expected rows, found none")
    problems += _uneven_rows(name, table)
    frame = _frame_of(table, {column: head.index(column) for column in columns})
    if "id" in columns:
        problems += _spoilt_ids(folder, name, frame)
    return frame


def _text_of(file: Path) -> str:
    """Read a file's text.

    Raises:
        _NotATableError: it cannot be read, or is no text.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # nothing waits for what a pipe may bring
            raise FileNotFoundError
        contents = file.read_bytes()
    except FileNotFoundError:
        raise _NotATableError(": expected a file, found none") from None
    except OSError as error:
        raise _NotATableError(f": expected a file to read, found: {error.strerror}") from error
    text = decoded(contents)
    if text is None:
        raise _NotATableError(": expected UTF-8 or Korean CP949, found neither; save it as UTF-8")
    if "\0" in text:
        line = len(re.findall("\r\n|\r|\n", text[: text.index("\0")])) + 1
        raise _NotATableError(f" line {line}: expected text, found a NUL byte; save it as UTF-8")
    return text


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
    lines = re.search(r"\S[^\r\n]*", text)
    head = lines[0] if lines else ""
    found = [delimiter for delimiter in DELIMITERS if delimiter in head]
    return found[0] if found and "," not in head else ","


def _table_of(text: str) -> _Table:
    """Part a file's text into its cells.

    A text in quotes may go over several lines, and an empty line is no row:

        1  id,question        the head
        2                     no row
        3  r0,"a question     row 0
        4  of two lines"
        5  r1,another         row 1         -> lines [3, 5]

    Raises:
        _NotATableError: other text follows a closing quote, or a quote is never closed. A lenient
            reader would take the commas and line ends after it for text, or for none.
    """
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=_delimiter_of(text), strict=True)
    rows = []
    starts = []
    start = 1
    try:
        for cells in reader:
            is_row = len(cells) > 1 or any(cell.strip() for cell in cells)
            if is_row:
                rows.append(cells)
                starts.append(start)
            start = reader.line_num + 1  # line_num counts lines within quotes too
    except csv.Error as error:
        ends = f"s {start} to {reader.line_num}" if start < reader.line_num else f" {start}"
        raise _NotATableError(
            f" line{ends}: expected a comma or the line's end after a text in quotes, "
            'found other text or no closing quote; a quote within such a text is written twice: ""'
        ) from error
    if not rows:
        return _Table([], [], [])
    head = [re.sub(INVISIBLE, "", column).strip() for column in rows[0]]
    return _Table(head, rows[1:], starts[1:])


def _uneven_rows(name: str, table: _Table) -> list[str]:
    """Describe rows of more or fewer cells than the head. Commas at the ends of lines are none."""
    most = len(table.head)
    least = max(place for place, column in enumerate(table.head, 1) if column)
    problems = []
    for cells, line in zip(table.rows, table.lines, strict=True):
        if any(cell.strip() for cell in cells[most:]):
            expected = f"expected {most} cells (texts with commas in quotes)"
        elif len(cells) < least:
            expected = f"expected {least} cells"
        else:
            continue
        problems.append(f"{name} line {line}: {expected}, found {len(cells)}")
    return shortened(name, problems)


def _frame_of(table: _Table, places: dict[str, int]) -> pd.DataFrame:
    """Take columns of a table by their places; a cell that a row lacks is empty."""
    width = len(table.head)
    padded = [cells + [""] * (width - len(cells)) for cells in table.rows]
    columns = {}
    for name, place in places.items():
        columns[name] = [cells[place] for cells in padded]
    return pd.DataFrame(columns, dtype=str)


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
    lines = _table_of(_text_of(folder / name)).lines  # `read_rows` has read it
    problems = []
    for position, row in rows.to_dict("index").items():
        cells = {column: _cut(cell) for column, cell in row.items()}
        problems.append(f"{name} line {lines[position]}: {template.format(**cells)}")
    return shortened(name, problems)


def shortened(name: str, problems: list[str]) -> list[str]:
    """Keep the first problems of a kind, and count the others."""
    if len(problems) <= SHOWN:
        return problems
    rest = f"{name}: {len(problems) - SHOWN} more rows like the last"
    return [*problems[:SHOWN], rest]


def _cut(cell: str) -> str:
    """Keep the first characters of a long text: a cell may be a whole picture in base64."""
    return cell if len(cell) <= LONGEST_SHOWN else f"{cell[:LONGEST_SHOWN]}..."

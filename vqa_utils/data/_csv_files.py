"""Read CSV files of any common encoding as text; collect problems by file and line."""

import csv
import io
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

# In this order: UTF-8 refuses nearly all CP949 text, while CP949 may read UTF-8 as nonsense
ENCODINGS = ("utf-8-sig", "cp949")  # UTF-8 with or without a BOM, then what Korean Windows writes
AS_TEXT: dict[str, Any] = {"dtype": str, "keep_default_na": False}  # "None", "01" stay options
TOO_WIDE = "expected {} cells, found more; put texts with commas in quotes"
SHOWN = 12  # problems listed of a kind; the rest is counted


class _Table(NamedTuple):
    frame: pd.DataFrame
    encoding: str
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
    try:
        table = _read_table(folder / name)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        expected = "expected comma-separated rows (texts with commas in quotes)"
        problems.append(f"{name}: {expected}, found: {str(error).strip()}")
        return nothing
    if table is None:
        problems.append(f"{name}: expected UTF-8 or CP949, found neither; save it as UTF-8")
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
        problems += _too_wide(folder, name, frame, table.encoding)
    return frame[list(columns)]


def _read_table(path: Path) -> _Table | None:
    """Read a file in the first encoding that it can be decoded in; None if there is none."""
    for encoding in ENCODINGS:
        try:
            with warnings.catch_warnings(record=True, action="always") as warned:
                # index_col=False: with wider rows, pandas would take the first column as the index
                frame = pd.read_csv(path, **AS_TEXT, encoding=encoding, index_col=False)
        except UnicodeDecodeError:
            continue
        return _Table(frame, encoding, bool(warned))
    return None


def _too_wide(folder: Path, name: str, frame: pd.DataFrame, encoding: str) -> list[str]:
    """Name the rows with texts beyond the last column. Commas at the ends of lines are no text."""
    problem = TOO_WIDE.format(frame.shape[1])
    path = folder / name
    try:
        cells = pd.read_csv(path, **AS_TEXT, encoding=encoding, header=None, skiprows=1)
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
    reader = csv.reader(io.StringIO(_decoded(path.read_bytes()), newline=""))
    starts = []
    start = 1
    for cells in reader:
        # As pandas: a blank line is skipped, a line of commas alone is a row
        is_row = len(cells) > 1 or any(cell.strip() for cell in cells)
        if is_row:
            starts.append(start)
        start = reader.line_num + 1  # line_num counts lines within quotes too
    return starts[1:]


def _decoded(contents: bytes) -> str:
    """A file's text, in the encoding that `_read_table` has read it in."""
    first, last = ENCODINGS
    try:
        return contents.decode(first)
    except UnicodeDecodeError:
        return contents.decode(last)

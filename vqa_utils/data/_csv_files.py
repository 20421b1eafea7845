"""CSV files as the field writes them, read as text; what is wrong is told by file and line, all of it in one error."""

import csv
import io
import warnings
from pathlib import Path

import pandas as pd

ENCODINGS = ("utf-8-sig", "cp949")  # UTF-8 with or without a BOM, then what Korean Windows writes
AS_TEXT = {"dtype": str, "keep_default_na": False}
TOO_WIDE = "expected {} cells, found more; put texts with commas in quotes"
SHOWN = 12  # problems listed a kind; the rest is counted


def read_rows(
    folder: Path, name: str, columns: tuple[str, ...], problems: list[str]
) -> pd.DataFrame | None:
    """The columns of a CSV file, all cells as text: "None" and "01" are options, not a missing value and a number.

    Args:
        folder: where the file is; an absolute `name` needs none.
        columns: those that are read; an `image` column stands for `path`.
        problems: gets what is wrong with the file as a whole.

    Returns:
        None where there is no table; whatever columns there are where one is missing.
    """
    path = folder / name
    if not path.is_file():
        problems.append(f"{name}: expected a file, found none")
        return None
    for encoding in ENCODINGS:
        try:
            with warnings.catch_warnings(record=True, action="always") as cut_off:
                frame = pd.read_csv(path, **AS_TEXT, encoding=encoding, index_col=False)
            break
        except UnicodeDecodeError:
            continue
        except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            problems.append(
                f"{name}: expected comma-separated rows (texts with commas in quotes), found: {str(error).strip()}"
            )
            return None
    else:
        problems.append(f"{name}: expected UTF-8 or CP949, found neither; save it as UTF-8")
        return None
    frame.columns = [column.strip() for column in frame.columns]
    if "path" not in frame and "image" in frame:
        frame = frame.rename(columns={"image": "path"})
    missing = [column for column in columns if column not in frame]
    if missing:
        problems.append(
            f"{name}: expected the columns {', '.join(columns)}; lacks {', '.join(missing)}, found {', '.join(frame)}"
        )
        return frame
    if frame.empty:
        problems.append(f"{name}: expected rows, found none")
    if cut_off:  # cells without a column; empty ones are commas at the ends of lines
        problems += _too_wide(folder, name, frame, encoding)
    return frame[list(columns)]


def _too_wide(folder: Path, name: str, frame: pd.DataFrame, encoding: str) -> list[str]:
    try:
        every = pd.read_csv(folder / name, **AS_TEXT, encoding=encoding, header=None, skiprows=1)
    except pd.errors.ParserError:  # the head takes more than one line
        return [f"{name}: {TOO_WIDE.format(frame.shape[1])}"]
    return row_problems(
        folder,
        name,
        frame,
        (every.iloc[:, frame.shape[1] :] != "").any(axis=1),
        TOO_WIDE.format(frame.shape[1]),
    )


def row_problems(
    folder: Path, name: str, frame: pd.DataFrame, wrong: pd.Series, template: str
) -> list[str]:
    """One line a wrong row, with its line number in the file; past `SHOWN` the rest is counted."""
    rows = frame[wrong]
    if rows.empty:
        return []
    starts = _first_lines(folder / name)
    lines = [
        f"{name} line {starts[i]}: {template.format(**row)}"
        for i, row in rows.head(SHOWN).to_dict("index").items()
    ]
    return lines + (
        [f"{name}: {len(rows) - SHOWN} more rows like the last"] if len(rows) > SHOWN else []
    )


def _first_lines(path: Path) -> list[int]:
    """The line on which each row below the head starts: a text in quotes may go over several, and empty lines are no rows."""
    starts, text = [], path.read_bytes()
    encoding = next(encoding for encoding in ENCODINGS if _can_decode(text, encoding))
    reader, start = csv.reader(io.StringIO(text.decode(encoding), newline="")), 1
    for row in reader:
        if any(cell.strip() for cell in row) or len(row) > 1:
            starts.append(start)
        start = reader.line_num + 1
    return starts[1:]


def _can_decode(text: bytes, encoding: str) -> bool:
    try:
        text.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def listed(folder: Path, problems: list[str]) -> str:
    """One message of all problems of a folder's files."""
    return "\n".join(
        [f"{folder}: {len(problems)} problems", *(f"  - {problem}" for problem in problems)]
    )

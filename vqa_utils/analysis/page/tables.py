"""Lay out a table: names of columns, numbers as text, values to sort by."""

from dataclasses import dataclass
from typing import Any

from vqa_utils.analysis.page.numbers import cell_text, interval
from vqa_utils.analysis.page.results import Record, Result
from vqa_utils.analysis.page.words import COLUMN_KINDS, COLUMNS, FLAGS
from vqa_utils.language import called

IN_POINTS = ("positions", "orders")  # results whose intervals are of differences


@dataclass(frozen=True)
class Cell:
    """One cell."""

    text: str
    value: float | None = None
    """to sort by; None of a text"""


@dataclass(frozen=True)
class Column:
    """A column's head."""

    name: str
    is_text: bool
    """all cells are text: it stands at the left, as they do"""


@dataclass(frozen=True)
class Table:
    """A table, ready to be drawn."""

    columns: list[Column]
    rows: list[list[Cell]]


def table_of(result: Result) -> Table | None:
    """Lay out a result's table; the ends of an interval share a column. None without columns."""
    names = [name for name in result.columns if name != "high" or "low" not in result.columns]
    kind_of_interval = "points" if result.key in IN_POINTS else "percent"
    rows = []
    for record in result.records:
        rows.append([_cell(name, record, kind_of_interval) for name in names])
    columns = []
    for number, name in enumerate(names):
        is_number = any(row[number].value is not None for row in rows)
        columns.append(Column(_head(name), not is_number))
    return Table(columns, rows) if columns else None


def _head(name: str) -> str:
    shown = "interval" if name == "low" else name
    return COLUMNS.get(shown, shown)


def _cell(name: str, record: Record, kind_of_interval: str) -> Cell:
    value = record[name]
    if name == "low" and "high" in record:
        if value is None:
            return Cell("")
        return Cell(interval(value, record["high"], kind_of_interval), value)
    return _value_cell(value, COLUMN_KINDS.get(name, ""))


def _value_cell(value: Any, kind: str) -> Cell:
    if isinstance(value, bool):
        return Cell(FLAGS[value])
    if isinstance(value, str):
        return Cell(called(value))
    number = value if isinstance(value, int | float) else None
    return Cell(cell_text(value, kind), number)

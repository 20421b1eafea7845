"""Fit a table into the terminal's width without breaking a word."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table

LEAST_WIDTH = 4  # of a column whose words have to be broken after all


class Column(NamedTuple):
    """A column of a table."""

    head: str
    cells: Sequence[str]
    is_number: bool = False

    @property
    def widest(self) -> int:
        """Its width on one line."""
        return max(map(cell_len, (self.head, *self.cells)))

    @property
    def narrowest(self) -> int:
        """The width of its longest word."""
        words = " ".join((self.head, *self.cells)).split()
        return max(map(cell_len, words), default=1)


class Fit(NamedTuple):
    """What of a table is shown, and how wide."""

    columns: list[Column]
    widths: list[int]
    padding: int
    """spaces on both sides of a cell"""


def print_columns(
    console: Console,
    title: str,
    columns: Sequence[Column],
    drop: Sequence[str] = (),
    section_ends: Collection[int] = (),
) -> None:
    """Print a table.

    Args:
        console: the terminal.
        title: stands above it.
        columns: all of the same length.
        drop: heads of columns to leave out where there is no room, the least important first.
        section_ends: rows with a rule below.
    """
    found = fit(columns, console.width, drop)
    table = Table(padding=(0, found.padding))
    for column, width in zip(found.columns, found.widths, strict=True):
        justify: JustifyMethod = "right" if column.is_number else "left"
        table.add_column(column.head, width=width, justify=justify, overflow="fold")
    rows = zip(*(column.cells for column in found.columns), strict=True)
    for number, cells in enumerate(rows):
        table.add_row(*cells, end_section=number in section_ends)
    console.print(title, style="italic", markup=False, soft_wrap=False)
    console.print(table)
    without_room = [column.head for column in columns if column not in found.columns]
    if without_room:
        note = f"no room for {', '.join(without_room)}"
        console.print(note, style="dim", markup=False, soft_wrap=False)


def fit(columns: Sequence[Column], width: int, drop: Sequence[str] = ()) -> Fit:
    """Choose columns and widths: lines wrap first, then padding goes, then columns.

    Where even that is too wide, the widest column breaks words.
    """
    shown = list(columns)
    for head in ("", *drop):
        shown = [column for column in shown if column.head != head]
        for padding in (1, 0):
            room = width - _frame(len(shown), padding)
            widths = _narrowed(shown, room)
            if sum(widths) <= room:
                return Fit(shown, widths, padding)
    widest = widths.index(max(widths))
    widths[widest] = max(LEAST_WIDTH, widths[widest] - (sum(widths) - room))
    return Fit(shown, widths, padding)


def _frame(count: int, padding: int) -> int:
    """Return the width of the lines around so many columns, and of their padding."""
    return count + 1 + 2 * padding * count


def _narrowed(columns: Sequence[Column], room: int) -> list[int]:
    """Return widths that fit, or the narrowest; the column with the most to give wraps first."""
    widths = [column.widest for column in columns]
    slack = [column.widest - column.narrowest for column in columns]
    for place in sorted(range(len(columns)), key=slack.__getitem__, reverse=True):
        excess = max(0, sum(widths) - room)
        widths[place] -= min(excess, slack[place])
    return widths

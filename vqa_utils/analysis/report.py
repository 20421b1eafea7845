"""Write a run's report: an HTML page, its tables and figures as files too."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from vqa_utils.analysis._templates import cell_text, render
from vqa_utils.analysis.gallery import Card, cards_of
from vqa_utils.artifacts.files import write_atomically, write_sheet, write_text
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.places import portable
from vqa_utils.config import Config
from vqa_utils.presets import differences
from vqa_utils.prompts import LETTERS
from vqa_utils.setting_types import setting_text

PICTURE_SIDE_PX = 96  # small enough for 50 rows on a page


class Column(NamedTuple):
    """A column's head on the page."""

    name: str
    is_text: bool
    """all cells are text: it stands at the left, as they do"""


@dataclass(frozen=True)
class Section:
    """One part of the report: words, with a table or a figure or both."""

    title: str
    words: str = ""
    table: pd.DataFrame | None = None
    figure: Figure | None = None
    cards: list[Card] | None = None
    """the rows of `table` with their pictures, if it is about questions"""

    @property
    def table_file(self) -> str:
        """Such as "worst_mistakes.csv"."""
        return f"{_slug(self.title)}.csv"

    @property
    def figure_file(self) -> str:
        """Such as "accuracy_by_group.png"."""
        return f"{_slug(self.title)}.png"

    @property
    def columns(self) -> list[Column]:
        """The heads of the table on the page, without what the cards show."""
        columns = []
        table = self._without_cards()
        for name in table:
            # `all` is true of a table without lines
            is_text = len(table) > 0 and all(isinstance(cell, str) for cell in table[name])
            columns.append(Column(str(name), is_text))
        return columns

    @property
    def lines(self) -> list[list[object]]:
        """The cells of the table on the page, line by line, without what the cards show."""
        return [list(line) for line in self._without_cards().itertuples(index=False, name=None)]

    def _without_cards(self) -> pd.DataFrame:
        table = pd.DataFrame() if self.table is None else self.table
        if self.cards is None:
            return table
        on_card = ["path", "question", *LETTERS, "chosen", "answer"]
        return table.drop(columns=on_card, errors="ignore")


class Report:
    """Sections that a notebook shows while it adds them, and that are written at the end."""

    def __init__(self, paths: RunPaths, config: Config, picture_folder: Path):
        self.paths = paths
        self.config = config
        self.picture_folder = picture_folder
        self.sections: list[Section] = []

    def add(
        self,
        title: str,
        words: str = "",
        table: pd.DataFrame | None = None,
        figure: Figure | None = None,
    ) -> Figure | pd.DataFrame | None:
        """Add a section, and print its words.

        Args:
            title: its head, and the name of its files.
            words: what the table or the figure says.
            table: one with the column `path` is shown with the pictures, its questions and options
                as on cards.
            figure: shown as PNG.

        Returns:
            For a notebook to show: the figure, or else the table with its cells as on the page.
        """
        cards = None
        if table is not None and "path" in table:
            cards = cards_of(table, self.picture_folder, PICTURE_SIDE_PX)
        self.sections.append(Section(title, words, table, figure, cards))
        if words:
            print(words)
        if figure is not None or table is None:
            return figure
        return table.map(cell_text)

    def add_tables(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Add a section for each table, by its title."""
        for title, table in tables.items():
            self.add(title, table=table)

    def write(self) -> Path:
        """Write `report/`: each table as CSV, each figure as PNG, and `index.html` with all.

        Returns:
            The page's path.
        """
        folder = self.paths.report
        for section in self.sections:
            if section.table is not None:
                write_sheet(folder / section.table_file, section.table)
            if section.figure is not None:
                _write_png(folder / section.figure_file, section.figure)
        page = render(
            "report.html.jinja",
            run_id=self.paths.run_id,
            settings=_describe_settings(self.config),
            sections=sorted(self.sections, key=_place_on_page),
        )
        write_text(folder / "index.html", page)
        return folder / "index.html"


def _place_on_page(section: Section) -> int:
    """Tables first, then figures; rows with pictures are long and come last."""
    if section.cards is not None:
        return 2
    return 0 if section.table is not None else 1


def _write_png(path: Path, figure: Figure) -> None:
    # The temporary file that is moved to `path` has another suffix: the format must be named
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _describe_settings(config: Config) -> str:
    changed = []
    for name, value in differences(config).items():
        changed.append(f"{name}={portable(setting_text(value))}")
    return (
        f"Preset {config.preset}, changed settings: {' '.join(changed) or 'none'}.\n"
        f"Model {portable(config.model)}, data {portable(config.data)}."
    )


def _slug(title: str) -> str:
    """The title as the stem of a file's name: letters, digits and underscores."""
    kept = [char if char.isalnum() else "_" for char in title.lower()]
    return "".join(kept).strip("_")

"""Collect a run's results while a notebook shows them; write them as files and as a page."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vqa_utils.analysis.gallery import cards_of
from vqa_utils.analysis.page.results import Record, Result, slug, table_data
from vqa_utils.analysis.page.writing import write_page
from vqa_utils.artifacts.files import settings_to_json, write_atomically, write_json, write_sheet
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.run import read_config
from vqa_utils.metrics import number_text
from vqa_utils.tracking.trackers import Tracked, Trackers

PICTURE_SIDE_PX = 160  # 50 of them keep a page small
MOST_CARDS = 50
FOLDS = "Folds"  # the section of each fold's scores
SCORES = ("accuracy", "log_loss")  # that trackers are told


@dataclass
class Section:
    """One part of the report: words, a table, a figure, or several of them."""

    title: str
    words: str = ""
    table: pd.DataFrame | None = None
    figure: Figure | None = None
    cards: list[Record] = dataclasses.field(default_factory=list)
    """the rows of `table` with their pictures, if it is about questions"""

    @property
    def table_file(self) -> str:
        """Such as "worst_mistakes.csv"."""
        return f"{slug(self.title)}.csv"

    @property
    def figure_file(self) -> str:
        """Such as "reliability.png"; "" without a figure."""
        return f"{slug(self.title)}.png" if self.figure is not None else ""

    def result(self) -> Result:
        """The section as data."""
        columns, rows = table_data(self.table)
        return Result(self.title, self.words, columns, rows, self.cards, self.figure_file)


class Report:
    """Sections that a notebook shows while it adds them, and that are written at the end."""

    def __init__(self, paths: RunPaths, picture_folder: Path):
        self.paths = paths
        self.picture_folder = picture_folder
        self.sections: dict[str, Section] = {}

    def add(
        self,
        title: str,
        words: str = "",
        table: pd.DataFrame | None = None,
        figure: Figure | None = None,
    ) -> Figure | pd.DataFrame | None:
        """Add to the section of a title, and print the words.

        Args:
            title: the section's head, and the name of its files.
            words: what the table or the figure says.
            table: one with the column `path` is shown with the pictures, its questions and options
                as on cards, up to `MOST_CARDS`.
            figure: shown as PNG.

        Returns:
            For a notebook to show: the figure, or else the table with its cells as text.
        """
        section = self.sections.setdefault(title, Section(title))
        if words:
            section.words = words
            print(words)
        if figure is not None:
            section.figure = figure
        if table is not None:
            section.table = table
        if table is not None and "path" in table:
            cards = cards_of(table.head(MOST_CARDS), self.picture_folder, PICTURE_SIDE_PX)
            section.cards = [dataclasses.asdict(card) for card in cards]
        if figure is not None or table is None:
            return figure
        return table.map(cell_text)

    def add_tables(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Add a section for each table, by its title."""
        for title, table in tables.items():
            self.add(title, table=table)

    def write(self) -> Path:
        """Write `report/`: each table as CSV, each figure as PNG, all of it as data and as a page.

        Returns:
            The page's path.
        """
        folder = self.paths.report
        results = []
        for section in self.sections.values():
            if section.table is not None:
                write_sheet(folder / section.table_file, section.table)
            if section.figure is not None:
                _write_png(folder / section.figure_file, section.figure)
            results.append(dataclasses.asdict(section.result()))
        write_json(self.paths.results, results)
        self._tell_trackers()
        return write_page(self.paths)

    def _tell_trackers(self) -> None:
        """Report the scores of all folds together, and each figure, as the run `ensemble`."""
        config = read_config(self.paths)
        if not config.report_to:
            return
        tracked = Tracked(self.paths.folder, "ensemble", settings_to_json(config))
        trackers = Trackers(config, tracked)
        scores = self.sections.get(FOLDS, Section(FOLDS)).table
        if scores is not None:
            together = scores.iloc[-1]  # the line of all folds
            values = {f"out of fold/{name}": float(together[name]) for name in SCORES}
            trackers.log(values, step=0)
        for section in self.sections.values():
            if section.figure is not None:
                trackers.draw(section.title, section.figure)
        trackers.close()


def cell_text(value: object) -> str:
    """A cell of a table as text: three decimals of a float, nothing for NaN."""
    if isinstance(value, float):
        return "" if pd.isna(value) else number_text(value)
    return "" if value is None else str(value)


def _write_png(path: Path, figure: Figure) -> None:
    # The temporary file that is moved to `path` has another suffix: the format must be named
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))

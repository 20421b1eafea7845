"""Keep the results of 06_analysis as data, report/results.json."""

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vqa_utils.artifacts.files import TornFile, read_json
from vqa_utils.artifacts.paths import RunPaths

FINE_TUNED = "fine-tuned"
BASELINES = {"zero_shot": "base, zero-shot", "blank": "fine-tuned, blank images"}  # by split

REJECTED = "rejected"  # the reason of a label that looks wrong; others are ids that contradict it

Record = dict[str, Any]  # one line of a table, by column


@dataclass(frozen=True)
class Result:
    """One section of the report."""

    title: str
    words: str
    columns: list[str]
    rows: list[list[Any]]
    cards: list[Record]
    """of the rows, if they are about questions (see `gallery.Card`)"""
    figure: str
    """the name of its PNG beside it; "" without one"""

    @property
    def key(self) -> str:
        """The title as a name, such as "worst_mistakes"."""
        return slug(self.title)

    @property
    def records(self) -> list[Record]:
        """The table's lines."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def slug(title: str) -> str:
    """The title as the stem of a file's name: letters, digits and underscores."""
    kept = [char if char.isalnum() else "_" for char in title.lower()]
    return "".join(kept).strip("_")


def table_data(table: pd.DataFrame | None) -> tuple[list[str], list[list[Any]]]:
    """Return a table's columns and rows as JSON values; None in place of NaN."""
    if table is None:
        return [], []
    split = json.loads(table.to_json(orient="split", index=False, double_precision=15))
    return [str(name) for name in split["columns"]], split["data"]


def read_results(paths: RunPaths) -> dict[str, Result]:
    """Read a run's results by their key; empty before 06_analysis, or if the file is torn."""
    try:
        written = read_json(paths.results)
    except (FileNotFoundError, TornFile):
        return {}
    results = [Result(**values) for values in written]
    return {result.key: result for result in results}

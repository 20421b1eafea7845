"""The run's gallery, its table of folds and its HTML page."""

import html
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vqa_utils.analysis.gallery import Markup, illustrated
from vqa_utils.artifacts.files import write_atomically, write_csv, write_text
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config
from vqa_utils.presets import differences
from vqa_utils.setting_types import setting_text

STYLE = """
body { font-family: system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #223 }
div.wide { overflow-x: auto }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #dde }
th { cursor: pointer }
.text { text-align: left; max-width: 22rem }
p { white-space: pre-line }
img { max-width: 100% }
"""
# A click on a column's head sorts the table by it, a second one the other way: by number where both cells are numbers
SORT = """
document.querySelectorAll("th").forEach(head => head.addEventListener("click", () => {
  const column = head.cellIndex, body = head.closest("table").tBodies[0];
  const way = head.dataset.way = head.dataset.way === "1" ? -1 : 1;
  const value = row => row.cells[column].textContent;
  const compare = (x, y) => x !== "" && y !== "" && !isNaN(x) && !isNaN(y) ? x - y : x.localeCompare(y);
  [...body.rows].sort((a, b) => way * compare(value(a), value(b))).forEach(row => body.append(row));
}));
"""


def write_report(
    paths: RunPaths,
    config: Config,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
    words: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Path:
    """Write each table as CSV and each figure as PNG into `report/`, and `index.html` that shows them all.

    Args:
        paths: the run's.
        config: the run's.
        tables: by title; of one with the column `path`, the page shows the pictures, at its end.
        figures: by title.
        words: what the table or the figure of that title says.
        folder: where the pictures are.
    """
    words = words or {}
    for title, table in tables.items():
        write_csv(paths.report / f"{_slug(title)}.csv", table)
    long = {
        title: illustrated(table, folder)
        for title, table in tables.items()
        if folder and "path" in table
    }
    parts = [f"<h1>{html.escape(paths.run_id)}</h1><p>{html.escape(_settings(config))}</p>"]
    parts += [
        _head(title, words) + _table(table) for title, table in tables.items() if title not in long
    ]
    for title, figure in figures.items():
        name = f"{_slug(title)}.png"
        write_atomically(
            paths.report / name, lambda path, figure=figure: figure.savefig(path, format="png")
        )
        parts.append(f'{_head(title, words)}<img src="{name}" alt="{html.escape(title)}">')
    parts += [_head(title, words) + _table(table) for title, table in long.items()]
    page = paths.report / "index.html"
    head = f"<meta charset=utf-8><title>{html.escape(paths.run_id)}</title><style>{STYLE}</style>"
    body = f"{''.join(parts)}<script>{SORT}</script>"
    write_text(page, f"<!doctype html><html><head>{head}</head><body>{body}</body></html>\n")
    return page


def _settings(config: Config) -> str:
    changed = [f"{name}={setting_text(value)}" for name, value in differences(config).items()]
    return f"Preset {config.preset}, changed settings: {' '.join(changed) or 'none'}.\nModel {config.model}, data {config.data}."


def _table(table: pd.DataFrame) -> str:
    of_text = {
        column
        for column in table
        if len(table) and table[column].map(lambda cell: isinstance(cell, str)).all()
    }
    head = "".join(
        f"<th{' class=text' * (column in of_text)}>{html.escape(str(column))}</th>"
        for column in table
    )
    lines = ("".join(map(_cell, row)) for row in table.itertuples(index=False))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: object) -> str:
    if isinstance(value, str):
        return f'<td class="text">{value if isinstance(value, Markup) else html.escape(value)}</td>'
    return f"<td>{'' if pd.isna(value) else f'{value:.4g}' if isinstance(value, float) else html.escape(str(value))}</td>"


def _head(title: str, words: Mapping[str, str]) -> str:
    return f"<h2>{html.escape(title)}</h2>" + (
        f"<p>{html.escape(words[title])}</p>" if title in words else ""
    )


def _slug(title: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in title.lower()).strip("_")

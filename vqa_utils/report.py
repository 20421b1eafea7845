"""The run's gallery, its table of folds and its HTML page."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vqa_utils.artifacts.files import write_atomically, write_csv, write_text
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config
from vqa_utils.data.images import open_image
from vqa_utils.presets import differences
from vqa_utils.prompts import LETTERS
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


class Gallery:
    """Rows as cards (picture, question, options), which a notebook shows as HTML: any script is readable there."""

    def __init__(self, cards: Sequence[str]):
        self.cards = cards

    def _repr_html_(self) -> str:
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(self.cards)}</div>'


def gallery(rows: pd.DataFrame, folder: Path, side_px: int = 128) -> Gallery:
    """Cards of `rows` (`path`, `question`, `a` to `d`); `answer` and `chosen`, where there, are marked."""
    return Gallery([_card(row, folder, side_px) for row in rows.to_dict("records")])


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
    long = {title: illustrated(table, folder) for title, table in tables.items() if folder and "path" in table}
    parts = [f"<h1>{html.escape(paths.run_id)}</h1><p>{html.escape(_settings(config))}</p>"]
    parts += [_head(title, words) + _table(table) for title, table in tables.items() if title not in long]
    for title, figure in figures.items():
        name = f"{_slug(title)}.png"
        write_atomically(paths.report / name, lambda path, figure=figure: figure.savefig(path, format="png"))
        parts.append(f'{_head(title, words)}<img src="{name}" alt="{html.escape(title)}">')
    parts += [_head(title, words) + _table(table) for title, table in long.items()]
    page = paths.report / "index.html"
    head = f"<meta charset=utf-8><title>{html.escape(paths.run_id)}</title><style>{STYLE}</style>"
    body = f"{''.join(parts)}<script>{SORT}</script>"
    write_text(page, f"<!doctype html><html><head>{head}</head><body>{body}</body></html>\n")
    return page


class Markup(str):
    """Text that is HTML already."""


def illustrated(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Rows as a page shows them: the picture for its `path`, and the four options in one cell, marked as in a gallery."""
    records = rows.to_dict("records")
    pictures = [Markup(_picture(folder / row["path"], 96)) for row in records]
    options = [Markup("<br>".join(_option(row, letter) for letter in LETTERS)) for row in records]
    others = rows.drop(columns=["path", "question", *LETTERS, "chosen", "answer"], errors="ignore")
    shown = {"picture": pictures, "question": rows["question"], "options": options}
    return pd.DataFrame(shown, index=rows.index).join(others)


def _settings(config: Config) -> str:
    changed = [f"{name}={setting_text(value)}" for name, value in differences(config).items()]
    return (
        f"Preset {config.preset}, changed settings: {' '.join(changed) or 'none'}.\nModel {config.model}, data {config.data}."
    )


def _table(table: pd.DataFrame) -> str:
    of_text = {column for column in table if len(table) and table[column].map(lambda cell: isinstance(cell, str)).all()}
    head = "".join(f"<th{' class=text' * (column in of_text)}>{html.escape(str(column))}</th>" for column in table)
    lines = ("".join(map(_cell, row)) for row in table.itertuples(index=False))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: object) -> str:
    if isinstance(value, str):
        return f'<td class="text">{value if isinstance(value, Markup) else html.escape(value)}</td>'
    return f"<td>{'' if pd.isna(value) else f'{value:.4g}' if isinstance(value, float) else html.escape(str(value))}</td>"


def _head(title: str, words: Mapping[str, str]) -> str:
    return f"<h2>{html.escape(title)}</h2>" + (f"<p>{html.escape(words[title])}</p>" if title in words else "")


def _card(row: dict, folder: Path, side_px: int) -> str:
    picture = _picture(folder / row["path"], side_px)
    lines = [_option(row, letter) for letter in LETTERS]
    question = html.escape(str(row["question"]))
    return f'<div style="width:{side_px + 60}px;font-size:12px">{picture}<br><b>{question}</b><br>{"<br>".join(lines)}</div>'


def _picture(path: Path, side_px: int) -> str:
    """A picture that the page holds itself, of `side_px` at the most."""
    image = open_image(path)
    image.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f'<img width="{side_px}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _option(row: dict, letter: str) -> str:
    """One option; the right one is ticked, the chosen one is bold with its probability."""
    text = f"{letter}. {html.escape(str(row[letter]))}"
    if letter == row.get("chosen"):
        text = f"<b>{text}</b> ({row['p_chosen']:.2f})" if "p_chosen" in row else f"<b>{text}</b>"
    return text + (" ✓" if letter == row.get("answer") else "")


def _slug(title: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in title.lower()).strip("_")

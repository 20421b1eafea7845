"""Rows as cards that a notebook or a page shows: picture, question, options."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vqa_utils.data.images import open_image
from vqa_utils.prompts import LETTERS


class Gallery:
    """Rows as cards (picture, question, options), which a notebook shows as HTML: any script is readable there."""

    def __init__(self, cards: Sequence[str]):
        self.cards = cards

    def _repr_html_(self) -> str:
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(self.cards)}</div>'


def gallery(rows: pd.DataFrame, folder: Path, side_px: int = 128) -> Gallery:
    """Cards of `rows` (`path`, `question`, `a` to `d`); `answer` and `chosen`, where there, are marked."""
    return Gallery([_card(row, folder, side_px) for row in rows.to_dict("records")])


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

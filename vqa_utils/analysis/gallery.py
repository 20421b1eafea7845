"""Show rows as cards: picture, question, options."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vqa_utils.analysis._templates import render
from vqa_utils.data.pictures.copies import open_picture
from vqa_utils.prompts import LETTERS


@dataclass(frozen=True)
class Option:
    """One option of a card."""

    letter: str
    text: str
    is_right: bool
    is_chosen: bool
    probability: float | None
    """of the chosen one, if known"""


@dataclass(frozen=True)
class Card:
    """One row, ready to be shown."""

    picture: str
    """a data URI, so that a page holds it itself"""
    side_px: int
    question: str
    options: list[Option]


class Gallery:
    """Cards that a notebook shows as HTML: any script is readable there."""

    def __init__(self, cards: list[Card]):
        self.cards = cards

    def _repr_html_(self) -> str:
        return render("gallery.html.jinja", cards=self.cards)


def gallery(rows: pd.DataFrame, folder: Path, side_px: int = 128) -> Gallery:
    """Show `rows` in a notebook (see `cards_of`)."""
    return Gallery(cards_of(rows, folder, side_px))


def cards_of(rows: pd.DataFrame, folder: Path, side_px: int) -> list[Card]:
    """Make a card of each row.

    Args:
        rows: `path`, `question`, `a` to `d`; `answer`, `chosen` and `p_chosen` (its probability),
            if there, are marked.
        folder: of the pictures.
        side_px: the longer side of a picture at most.
    """
    cards = []
    for row in rows.to_dict("records"):
        options = [_option(row, letter) for letter in LETTERS]
        picture = _data_uri(folder / row["path"], side_px)
        cards.append(Card(picture, side_px, str(row["question"]), options))
    return cards


def _option(row: dict[Any, Any], letter: str) -> Option:
    is_chosen = letter == row.get("chosen")
    return Option(
        letter=letter,
        text=str(row[letter]),
        is_right=letter == row.get("answer"),
        is_chosen=is_chosen,
        probability=row.get("p_chosen") if is_chosen else None,
    )


def _data_uri(path: Path, side_px: int) -> str:
    """A picture of at most `side_px` as the `src` of an <img>: a drawing as PNG, a photo as JPEG."""
    image = open_picture(path, side_px).image
    image.thumbnail((side_px, side_px))  # in place; keeps the aspect ratio, enlarges nothing
    encoded = {}
    for kind in ("png", "jpeg"):
        file = io.BytesIO()
        image.save(file, kind)
        encoded[kind] = file.getvalue()
    smaller = min(encoded, key=lambda kind: len(encoded[kind]))
    return f"data:image/{smaller};base64,{base64.b64encode(encoded[smaller]).decode()}"

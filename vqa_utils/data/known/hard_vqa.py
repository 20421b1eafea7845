"""Draw a harder challenge of the usual files, for what the demo's 0.97 cannot tell apart.

A picture of 128 pixels has one to four shapes and a sign with a digit. The demo shows it at 64: more
pixels, and crops, show more. Questions ask for colours and shapes, for what is absent, for places,
numbers and the digit; a sixth is Korean, which the tiny base has never read.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from vqa_utils.artifacts.files import write_csv, write_json
from vqa_utils.data.known._hard_questions import (
    DIGITS,
    ENGLISH,
    KINDS,
    KOREAN,
    MOST_ITEMS,
    Question,
    Scene,
)
from vqa_utils.data.known.shapes import Item, draw_item, light_ground
from vqa_utils.prompts import LETTERS

SIDE_PX = 128
CELLS = 3  # a side; the items and the sign stand in cells of their own
CELL_PX = SIDE_PX / CELLS
SIGN_SCALE = 4  # the font's digits are 6 x 11 pixels
KOREAN_SHARE = 1 / 6
SEED = 7
ROWS = {"train": 1200, "test": 400}  # each with a picture of its own


class Example(NamedTuple):
    """A picture and a question about it."""

    image: Image.Image
    columns: dict[str, str]
    """`question`, `a` to `d` and `answer`."""


def write_challenge(folder: Path) -> Path:
    """Write train.csv, test.csv, sample_submission.csv and the pictures, unless they are there.

    Returns:
        The folder.
    """
    marker = folder / "source.json"  # written last
    if marker.exists():
        return folder
    train, test = (_write_rows(folder, split) for split in ROWS)
    write_csv(folder / "train.csv", train)
    write_csv(folder / "test.csv", test.drop(columns="answer"))
    write_csv(folder / "sample_submission.csv", test[["id"]].assign(answer="a"))
    write_json(marker, {"source": "hard-vqa, drawn", "seed": SEED, "rows": ROWS})
    return folder


def _write_rows(folder: Path, split: str) -> pd.DataFrame:
    """Write a split's pictures, and return the columns of train.csv."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, example in enumerate(draw_examples(split, ROWS[split]), 1):
        row_id = f"{split}_{number:04d}"
        path = f"{split}/{row_id}.png"
        example.image.save(folder / path)
        rows.append({"id": row_id, "path": path, **example.columns})
    return pd.DataFrame(rows)


def draw_examples(split: str, count: int) -> Iterator[Example]:
    """Draw pictures with a question each.

    Args:
        split: seeds the draw.
        count: of the pictures.
    """
    # Seeded by the text's SHA-512, not by its hash(), which differs between processes
    rng = random.Random(f"{SEED} {split}")
    for _ in range(count):
        (ask,) = rng.choices(list(KINDS), list(KINDS.values()))
        words = KOREAN if rng.random() < KOREAN_SHARE else ENGLISH
        question = None
        while question is None:  # this kind cannot be asked of each scene
            image, scene = draw_scene(rng)
            question = ask(scene, words, rng)
        yield Example(image, _columns(question, rng))


def draw_scene(rng: random.Random) -> tuple[Image.Image, Scene]:
    """Draw one to four shapes of different colours and a sign, each in a cell of its own."""
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), light_ground(rng))
    pen = ImageDraw.Draw(image)
    colours = rng.sample(list(ENGLISH.colours), rng.randint(1, MOST_ITEMS))
    cells = [(column, row) for column in range(CELLS) for row in range(CELLS)]
    sign_cell, *item_cells = rng.sample(cells, 1 + len(colours))
    digit = rng.choice(DIGITS)
    _draw_sign(image, digit, sign_cell)
    items = []
    for cell, colour in zip(item_cells, colours, strict=True):
        size = rng.uniform(13, 19)  # px, the circumradius
        free = CELL_PX / 2 - size  # px that the centre may be off the cell's
        x, y = ((place + 0.5) * CELL_PX + rng.uniform(-free, free) for place in cell)
        item = Item(rng.choice(list(ENGLISH.shapes)), colour, x, y)
        draw_item(pen, item, size, rng, line_px=6)
        items.append(item)
    return image, Scene(items, digit, SIDE_PX)


def _draw_sign(image: Image.Image, digit: str, cell: tuple[int, int]) -> None:
    """Write a digit in black on a white plate in the middle of a cell."""
    plate = Image.new("RGB", (7, 11), "white")
    font = ImageFont.load_default_imagefont()  # of pixels: the same on every machine
    ImageDraw.Draw(plate).text((1, 0), digit, "black", font)
    width, height = plate.width * SIGN_SCALE, plate.height * SIGN_SCALE
    plate = plate.resize((width, height), Image.Resampling.NEAREST)
    x, y = ((place + 0.5) * CELL_PX for place in cell)
    image.paste(plate, (round(x - width / 2), round(y - height / 2)))


def _columns(question: Question, rng: random.Random) -> dict[str, str]:
    """`question`, its options in random order as `a` to `d`, and the letter of the `answer`."""
    options = rng.sample(question.options, len(LETTERS))
    answer = LETTERS[options.index(question.options[0])]
    return {"question": question.text, **dict(zip(LETTERS, options, strict=True)), "answer": answer}

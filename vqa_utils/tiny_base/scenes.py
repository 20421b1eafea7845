"""Draw scenes with four-choice questions: the data that the tiny base was trained on.

Nothing here comes from easy-VQA. The scenes are drawn (several shapes at a time, turned, in varying
colours), and no question has the words of one of easy-VQA's: `pretraining` compares all of them and
refuses to train otherwise.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vqa_utils.data.known.shapes import COLOURS, SHAPES, Item, draw_item, light_ground
from vqa_utils.prompts import LETTERS

SIDE_PX = 64
COUNTS = ("zero", "one", "two", "three")  # by number of shapes; zero is always wrong
SIDES = ("left", "right", "top", "bottom", "center")  # center is always wrong
YES_NO = ("yes", "no", "maybe", "unknown")


class Question(NamedTuple):
    """A question about a scene."""

    text: str
    answer: str
    options: Sequence[str]
    """The answer and at least three wrong ones."""


def draw_scene(seed: int) -> tuple[np.ndarray, list[Item]]:
    """Draw one to three shapes on a light ground: uint8 [64, 64, 3], and the list of them."""
    rng = random.Random(seed)
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), light_ground(rng))
    pen = ImageDraw.Draw(image)
    count = rng.choice((1, 1, 1, 1, 2, 3))  # two thirds have one, as all of easy-VQA
    items = []
    for colour in rng.sample(list(COLOURS), count):  # none twice: a colour names one item
        size = rng.uniform(5, 24) if count == 1 else rng.uniform(7, 13)  # px, the circumradius
        shape = rng.choice(SHAPES)
        x = rng.uniform(size, SIDE_PX - size)
        y = rng.uniform(size, SIDE_PX - size)
        item = Item(shape, colour, x, y)
        draw_item(pen, item, size, rng, line_px=3)
        items.append(item)
    return np.asarray(image).copy(), items


def ask(items: list[Item], rng: random.Random) -> dict[str, str]:
    """Ask about a scene: `question`, the options `a` to `d` in random order, the right `answer`."""
    item = rng.choice(items)
    kinds = [_is_there, _is_there_not, _shape_of, _colour_of, _count, _side_of]
    # Shares of 17; easy-VQA asks neither for counts nor for sides
    (kind,) = rng.choices(kinds, weights=(4, 3, 4, 4, 1, 1))
    question = kind(item, items, rng)
    others = [option for option in question.options if option != question.answer]
    wrong = rng.sample(others, 3)
    options = rng.sample([question.answer, *wrong], 4)
    row = dict(zip(LETTERS, options, strict=True))
    answer = LETTERS[options.index(question.answer)]
    return {"question": question.text, **row, "answer": answer}


def _name_present_or_not(items: list[Item], rng: random.Random) -> tuple[str, bool]:
    """A shape ("a star") or colour ("something red") to ask for, and if the scene has it.

    Half of the names are of the scene.
    """
    attribute, names = rng.choice((("shape", SHAPES), ("colour", tuple(COLOURS))))
    there = {getattr(item, attribute) for item in items}
    is_present = rng.random() < 0.5
    name = rng.choice([name for name in names if (name in there) == is_present])
    if attribute == "shape":
        words = (f"a {name}", f"one {name}")
    else:
        words = (f"something {name}", f"a {name} thing")
    return rng.choice(words), is_present


def _is_there(item: Item, items: list[Item], rng: random.Random) -> Question:
    name, is_present = _name_present_or_not(items, rng)
    text = rng.choice((
        "can you see {} here?", "does this picture show {}?", "is {} in this picture?",
        "is {} visible?", "does the image have {} in it?", "do you see {} in the image?",
    ))  # fmt: skip
    return Question(text.format(name), "yes" if is_present else "no", YES_NO)


def _is_there_not(item: Item, items: list[Item], rng: random.Random) -> Question:
    name, is_present = _name_present_or_not(items, rng)
    text = rng.choice((
        "does this picture not show {}?", "is {} not in this picture?", "is {} not visible?",
        "is it true that there is not {} here?", "does the image not have {} in it?",
        "is there no sign of {}?",
    ))  # fmt: skip
    return Question(text.format(name), "no" if is_present else "yes", YES_NO)


def _shape_of(item: Item, items: list[Item], rng: random.Random) -> Question:
    texts = [
        "which shape is {}?",
        "name the {} shape.",
        "what is the {} thing?",
        "the {} thing is what shape?",
    ]
    if len(items) == 1:  # then the colour need not be named
        texts += [
            "what shape do you see?",
            "which shape does this picture show?",
            "name the shape in the image.",
        ]
    return Question(rng.choice(texts).format(item.colour), item.shape, SHAPES)


def _colour_of(item: Item, items: list[Item], rng: random.Random) -> Question:
    same_shape = [other for other in items if other.shape == item.shape]
    if len(same_shape) > 1:  # the shape does not say which one is meant
        return _count(item, items, rng)
    texts = [
        "which color does the {} have?",
        "tell the color of the {}.",
        "the {} is of what color?",
    ]
    if len(items) == 1:
        texts += [
            "what color do you see?",
            "the shape has which color?",
            "name the color of the shape.",
        ]
    return Question(rng.choice(texts).format(item.shape), item.colour, tuple(COLOURS))


def _count(item: Item, items: list[Item], rng: random.Random) -> Question:
    text = rng.choice(("how many shapes are there?", "how many things can you count?"))
    return Question(text, COUNTS[len(items)], COUNTS)


def _side_of(item: Item, items: list[Item], rng: random.Random) -> Question:
    """Ask for a side. An item at the top left is on both sides: one is asked for, one left out."""
    across = "left" if item.x < SIDE_PX / 2 else "right"
    down = "top" if item.y < SIDE_PX / 2 else "bottom"
    answer, other = rng.sample((across, down), 2)
    options = [side for side in SIDES if side != other]
    return Question(f"on which side is the {item.colour} {item.shape}?", answer, options)

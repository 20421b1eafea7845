"""Drawn scenes with four-choice questions: what the tiny base model learned from.

Nothing here comes from easy-VQA: the scenes are drawn (rotated shapes, several at a time, colours that vary), and
`pretrain.py` refuses a question that easy-VQA asks in the same words.
"""

import math
import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIDE_PX = 64
COLOURS = {
    "red": (225, 30, 30), "blue": (30, 60, 225), "green": (30, 170, 60), "yellow": (240, 230, 40),
    "black": (12, 12, 12), "gray": (128, 128, 128), "teal": (10, 130, 130), "brown": (140, 70, 35),
    "orange": (250, 140, 20), "purple": (130, 30, 150), "pink": (250, 150, 190), "white": (250, 250, 250),
}  # fmt: skip
SHAPES = ("circle", "rectangle", "triangle", "line", "star")
COUNTS = ("zero", "one", "two", "three")
SIDES = ("left", "right", "top", "bottom", "center")
YES_NO = ("yes", "no", "maybe", "unknown")


class Item(NamedTuple):
    """One shape of a scene; `x` and `y` are its centre in pixels."""

    shape: str
    colour: str
    x: float
    y: float


def draw_scene(seed: int) -> tuple[np.ndarray, list[Item]]:
    """One to three shapes on a light ground: uint8 [64, 64, 3] and what is on it."""
    rng = random.Random(seed)
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), tuple(rng.randint(200, 255) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    count = rng.choice((1, 1, 1, 1, 2, 3))
    items = []
    for colour in rng.sample(list(COLOURS), count):
        size = rng.uniform(5, 24) if count == 1 else rng.uniform(7, 13)
        item = Item(rng.choice(SHAPES), colour, *(rng.uniform(size, SIDE_PX - size) for _ in "xy"))
        fill = tuple(max(0, min(255, v + rng.randint(-30, 30))) for v in COLOURS[colour])
        _draw(pen, item, size, fill, rng)
        items.append(item)
    return np.asarray(image).copy(), items


def _draw(
    pen: ImageDraw.ImageDraw, item: Item, size: float, fill: tuple, rng: random.Random
) -> None:
    """Half of the shapes stand upright, the others are turned by any angle."""
    x, y, turn = item.x, item.y, rng.uniform(0, math.tau) if rng.random() < 0.5 else 0.0

    def corner(radius: float, angle: float) -> tuple[float, float]:
        return x + radius * math.cos(turn + angle), y + radius * math.sin(turn + angle)

    if item.shape == "circle":
        pen.ellipse((x - size, y - size, x + size, y + size), fill)
    elif item.shape == "rectangle":
        half = math.atan(rng.uniform(0.4, 2.5))
        angles = (half, math.pi - half, math.pi + half, -half)
        pen.polygon([corner(size, angle) for angle in angles], fill)
    elif item.shape == "triangle":
        pen.polygon([corner(size, k * math.tau / 3 - math.pi / 2) for k in range(3)], fill)
    elif item.shape == "line":
        pen.line((*corner(size, 0), *corner(size, math.pi)), fill, width=3)
    else:
        points = [corner(size if k % 2 else size * 0.4, k * math.tau / 10) for k in range(10)]
        pen.polygon(points, fill)


def ask(items: list[Item], rng: random.Random) -> dict[str, str]:
    """A four-choice question about a scene: `question`, the options `a` to `d`, `answer`."""
    item = rng.choice(items)
    kinds = [_is_there, _is_there_not, _shape_of, _colour_of, _count, _side_of]
    question, answer, others = rng.choices(kinds, weights=(4, 3, 4, 4, 1, 1))[0](item, items, rng)
    wrong = rng.sample([option for option in others if option != answer], 3)
    options = rng.sample([answer, *wrong], 4)
    row = dict(zip("abcd", options, strict=True))
    return {"question": question, **row, "answer": "abcd"[options.index(answer)]}


def _name_present_or_not(items: list[Item], rng: random.Random) -> tuple[str, bool]:
    """A shape ("a star") or a colour ("something red") to ask for, and whether the scene has it: half of them do."""
    attribute, names = rng.choice((("shape", SHAPES), ("colour", tuple(COLOURS))))
    there = {getattr(item, attribute) for item in items}
    present = rng.random() < 0.5
    name = rng.choice([name for name in names if (name in there) == present])
    words = (
        (f"a {name}", f"one {name}")
        if attribute == "shape"
        else (f"something {name}", f"a {name} thing")
    )
    return rng.choice(words), present


def _is_there(item: Item, items: list[Item], rng: random.Random) -> tuple:
    what, present = _name_present_or_not(items, rng)
    question = rng.choice((
        "can you see {} here?", "does this picture show {}?", "is {} in this picture?",
        "is {} visible?", "does the image have {} in it?", "do you see {} in the image?",
    ))  # fmt: skip
    return question.format(what), "yes" if present else "no", YES_NO


def _is_there_not(item: Item, items: list[Item], rng: random.Random) -> tuple:
    what, present = _name_present_or_not(items, rng)
    question = rng.choice((
        "does this picture not show {}?", "is {} not in this picture?", "is {} not visible?",
        "is it true that there is not {} here?", "does the image not have {} in it?", "is there no sign of {}?",
    ))  # fmt: skip
    return question.format(what), "no" if present else "yes", YES_NO


def _shape_of(item: Item, items: list[Item], rng: random.Random) -> tuple:
    named = (
        "which shape is {}?",
        "name the {} shape.",
        "what is the {} thing?",
        "the {} thing is what shape?",
    )
    alone = (
        "what shape do you see?",
        "which shape does this picture show?",
        "name the shape in the image.",
    )
    templates = named + alone if len(items) == 1 else named
    return rng.choice(templates).format(item.colour), item.shape, SHAPES


def _colour_of(item: Item, items: list[Item], rng: random.Random) -> tuple:
    named = (
        "which color does the {} have?",
        "tell the color of the {}.",
        "the {} is of what color?",
    )
    alone = ("what color do you see?", "the shape has which color?", "name the color of the shape.")
    unique = sum(other.shape == item.shape for other in items) == 1
    if not unique:
        return _count(item, items, rng)
    templates = named + alone if len(items) == 1 else named
    return rng.choice(templates).format(item.shape), item.colour, tuple(COLOURS)


def _count(item: Item, items: list[Item], rng: random.Random) -> tuple:
    question = rng.choice(("how many shapes are there?", "how many things can you count?"))
    return question, COUNTS[len(items)], COUNTS


def _side_of(item: Item, items: list[Item], rng: random.Random) -> tuple:
    """The wrong options are sides that are wrong: left or right of the middle, or above or below it, never both."""
    across, down = (
        ("left" if item.x < SIDE_PX / 2 else "right"),
        ("top" if item.y < SIDE_PX / 2 else "bottom"),
    )
    answer, other = rng.sample((across, down), 2)
    question = f"on which side is the {item.colour} {item.shape}?"
    return question, answer, tuple(side for side in SIDES if side != other)

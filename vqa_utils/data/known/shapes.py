"""Draw coloured shapes: for the scenes of the tiny base's pretraining, and for hard-vqa's pictures."""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from PIL import ImageDraw

COLOURS = {
    "red": (225, 30, 30), "blue": (30, 60, 225), "green": (30, 170, 60), "yellow": (240, 230, 40),
    "black": (12, 12, 12), "gray": (128, 128, 128), "teal": (10, 130, 130), "brown": (140, 70, 35),
    "orange": (250, 140, 20), "purple": (130, 30, 150), "pink": (250, 150, 190), "white": (250, 250, 250),
}  # fmt: skip
SHAPES = ("circle", "rectangle", "triangle", "line", "star")


class Item(NamedTuple):
    """One shape of a scene; `x` and `y` are its centre in pixels."""

    shape: str
    colour: str
    x: float
    y: float


def light_ground(rng: random.Random) -> tuple[int, ...]:
    """Draw the colour of a picture's ground."""
    return tuple(rng.randint(200, 255) for _ in range(3))


def draw_item(
    pen: ImageDraw.ImageDraw, item: Item, size: float, rng: random.Random, *, line_px: int
) -> None:
    """Draw an item in its colour, up to 30 of 255 lighter or darker in each channel.

    Half of the items stand upright, the others are turned by any angle.

    Args:
        pen: draws on the picture.
        item: what, and where.
        size: the radius of its circumcircle in pixels.
        rng: says the angle, and how much darker.
        line_px: the width of a line.
    """
    fill = tuple(_near(value, rng) for value in COLOURS[item.colour])
    is_turned = rng.random() < 0.5
    turn = rng.uniform(0, math.tau) if is_turned else 0.0
    if item.shape == "circle":
        x, y = item.x, item.y
        pen.ellipse((x - size, y - size, x + size, y + size), fill)
        return
    corners = []
    for radius, angle in _corners(item.shape, size, rng):
        x = item.x + radius * math.cos(turn + angle)
        y = item.y + radius * math.sin(turn + angle)
        corners.append((x, y))
    if item.shape == "line":
        pen.line(corners, fill, width=line_px)
    else:
        pen.polygon(corners, fill)


def _near(value: int, rng: random.Random) -> int:
    return max(0, min(255, value + rng.randint(-30, 30)))


def _corners(shape: str, size: float, rng: random.Random) -> Sequence[tuple[float, float]]:
    """The corners of an upright shape: distance from the centre in px, and angle."""
    if shape == "line":
        return [(size, 0), (size, math.pi)]
    if shape == "triangle":
        # y grows downwards: -pi/2 is the top
        return [(size, k * math.tau / 3 - math.pi / 2) for k in range(3)]
    if shape == "star":  # of five points; ten corners, near and far in turns
        return [(size if k % 2 else size * 0.4, k * math.tau / 10) for k in range(10)]
    # The tangent is the ratio of height and width
    half = math.atan(rng.uniform(0.4, 2.5))  # of the angle between a rectangle's diagonals
    return [(size, angle) for angle in (half, math.pi - half, math.pi + half, -half)]

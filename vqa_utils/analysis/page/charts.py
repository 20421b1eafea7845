"""Lay out bars and lines; the templates draw them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

# Of a chart of lines, in units of its drawing; the text has 11 of them
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34
TICKS = 5  # at most so many an axis
MOST_POINTS = 40  # of a line: more are averaged

Point = tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """A bar with its label; lengths in percent of the track."""

    label: str
    text: str
    start: float
    length: float
    low: float | None = None
    """ends of the interval"""
    high: float | None = None
    style: str = "other"
    """"own", "other" or "bad", or "s0", "s1", ... of several series"""
    series: str = ""
    """the name of its series, of several"""
    mark: float | None = None
    """a place of its own, such as the plan of a GPU"""

    @property
    def alt(self) -> str:
        """The bar in words."""
        return f"{self.label or self.series} {self.text}"


@dataclass(frozen=True)
class Bars:
    """Bars with common marks."""

    bars: list[Bar]
    mark: float | None = None
    """place of a line through all bars, in percent"""
    mark_text: str = ""
    series: tuple[str, ...] = ()
    """names of the styles s0, s1, ..., for a legend"""
    note: str = ""
    """what a "bad" bar means"""
    kind: str = "bars"

    @property
    def alt(self) -> str:
        """The bars in words, for those who cannot see them."""
        marked = f"; {self.mark_text}" if self.mark_text else ""
        return "; ".join(bar.alt for bar in self.bars) + marked


@dataclass(frozen=True)
class Scale:
    """The values at the two ends of an axis."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """The place of a value between the ends, from 0 to 1."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def percent(self, value: float) -> float:
        """The place of a value, in percent."""
        return round(100 * self.share(value), 2)

    def ticks(self) -> list[float]:
        """Round numbers between the ends."""
        step = _round_step((self.high - self.low) / TICKS)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


@dataclass(frozen=True)
class Tick:
    """A number at an axis."""

    place: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A dot of a series."""

    x: float
    y: float
    radius: float
    text: str


@dataclass(frozen=True)
class Series:
    """A line, its dots, or both."""

    name: str
    path: str
    dots: list[Dot]


@dataclass(frozen=True)
class Lines:
    """A chart of lines or dots on two axes."""

    title: str
    alt: str
    x_title: str
    series: list[Series]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    diagonal: str = ""
    """path of the line of equal values"""
    kind: str = "lines"
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Axes:
    """Both scales of a chart of lines."""

    x: Scale
    y: Scale

    def place(self, point: Point) -> Point:
        """The place of a point in the drawing."""
        x = LEFT + self.x.share(point[0]) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - self.y.share(point[1]) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    def path(self, points: Sequence[Point]) -> str:
        """The line through points, as SVG has it."""
        places = [self.place(point) for point in points]
        return "M" + " L".join(f"{x} {y}" for x, y in places)

    def x_ticks(self, text: Callable[[float], str] = "{:g}".format) -> list[Tick]:
        """The numbers below."""
        return [Tick(self.place((x, self.y.low))[0], text(x)) for x in self.x.ticks()]

    def y_ticks(self, text: Callable[[float], str] = "{:g}".format) -> list[Tick]:
        """The numbers at the left."""
        return [Tick(self.place((self.x.low, y))[1], text(y)) for y in self.y.ticks()]


def axes_of(points: Iterable[Point]) -> Axes:
    """Scales that hold all points, of which there is one at least."""
    xs, ys = zip(*points, strict=True)
    return Axes(_scale(xs), _scale(ys))


def averaged(points: Sequence[Point]) -> list[Point]:
    """Average neighbouring points, so that a line has few and is smooth."""
    size = max(1, math.ceil(len(points) / MOST_POINTS))
    means = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        xs, ys = zip(*part, strict=True)
        means.append((sum(xs) / len(part), sum(ys) / len(part)))
    return means


def _scale(values: Sequence[float]) -> Scale:
    """From the lowest to the highest value, with room around equal ones."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * max(1.0, abs(high))
    return Scale(0.0 if 0 <= low < room else low - room, high + room)


def _round_step(step: float) -> float:
    """The nearest of 1, 2, 2.5, 5 and 10, times a power of ten, that is no smaller."""
    power = 10 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)

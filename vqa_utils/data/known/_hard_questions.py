"""Ask in English and Korean about the scenes of hard-vqa."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vqa_utils.data.known.shapes import Item

MOST_ITEMS = 4
DIGITS = ("1", "2", "3", "4", "5", "6")
APART_PX = 14  # in a picture of 128: clearly farther to one side


class Scene(NamedTuple):
    """What a picture shows."""

    items: list[Item]
    """One to four, none with another's colour."""
    sign: str
    """The digit on the sign."""
    side: int
    """The picture's, in pixels."""

    @property
    def colours(self) -> list[str]:
        """Of its items, in their order."""
        return [item.colour for item in self.items]

    @property
    def shapes(self) -> list[str]:
        """Of its items, in their order."""
        return [item.shape for item in self.items]


class Question(NamedTuple):
    """A question about a scene, with four options; the first one is right."""

    text: str
    options: Sequence[str]


class Words(NamedTuple):
    """What things are called in a language, and how it asks for them."""

    colours: Mapping[str, str]
    shapes: Mapping[str, str]
    counts: Sequence[str]
    """From zero to four."""
    yes_no: Sequence[str]
    """Yes, no, and two answers that are never right."""
    corners: Sequence[str]
    """Upper left, upper right, lower left, lower right."""
    texts: Mapping[str, str]
    """The question of each form."""


ENGLISH = Words(
    colours={name: name for name in ("red", "blue", "green", "yellow", "black", "purple")},
    shapes={name: name for name in ("circle", "rectangle", "triangle", "star")},
    counts=("zero", "one", "two", "three", "four"),
    yes_no=("yes", "no", "maybe", "unknown"),
    corners=("upper left", "upper right", "lower left", "lower right"),
    texts={
        "sign": "which number is written on the sign?",
        "count all": "how many shapes are in it?",
        "count": "how many {}s are in it?",
        "colour": "in which color is the {} drawn?",
        "shape": "what is it that is {}?",
        "no colour": "is nothing {} in here?",
        "no shape": "is there no {} in here?",
        "missing": "which color is missing?",
        "leftmost": "which color is leftmost?",
        "rightmost": "which color is rightmost?",
        "highest": "which color is highest?",
        "lowest": "which color is lowest?",
        "corner": "where is the {} {}?",
    },
)
# All names end in a consonant (색, 원, 형, 별), so that one particle fits them all
KOREAN = Words(
    colours={
        "red": "빨간색", "blue": "파란색", "green": "초록색", "yellow": "노란색", "black": "검은색",
        "purple": "보라색",
    },
    shapes={"circle": "원", "rectangle": "사각형", "triangle": "삼각형", "star": "별"},
    counts=("0개", "1개", "2개", "3개", "4개"),
    yes_no=("예", "아니요", "아마도", "모름"),
    corners=("왼쪽 위", "오른쪽 위", "왼쪽 아래", "오른쪽 아래"),
    texts={
        "sign": "표지판에 적힌 숫자는?",
        "count all": "도형은 모두 몇 개인가요?",
        "count": "{}은 몇 개인가요?",
        "colour": "{}은 무슨 색인가요?",
        "shape": "{}은 무슨 모양인가요?",
        "no colour": "{}이 없나요?",
        "no shape": "{}이 없나요?",
        "missing": "없는 색은 무엇인가요?",
        "leftmost": "가장 왼쪽은 무슨 색인가요?",
        "rightmost": "가장 오른쪽은 무슨 색인가요?",
        "highest": "가장 위는 무슨 색인가요?",
        "lowest": "가장 아래는 무슨 색인가요?",
        "corner": "{} {}은 어디에 있나요?",
    },
)  # fmt: skip


def _sign(scene: Scene, words: Words, rng: random.Random) -> Question:
    return _question(words.texts["sign"], scene.sign, DIGITS, rng)


def _count_all(scene: Scene, words: Words, rng: random.Random) -> Question:
    right = words.counts[len(scene.items)]
    return _question(words.texts["count all"], right, words.counts[1:], rng)


def _count(scene: Scene, words: Words, rng: random.Random) -> Question | None:
    count = rng.randrange(MOST_ITEMS)
    fitting = [shape for shape in words.shapes if scene.shapes.count(shape) == count]
    if not fitting:
        return None
    text = words.texts["count"].format(words.shapes[rng.choice(fitting)])
    return _question(text, words.counts[count], words.counts[:MOST_ITEMS], rng)


def _colour(scene: Scene, words: Words, rng: random.Random) -> Question | None:
    """Ask for the colour of the only one of its shape."""
    single = [item for item in scene.items if scene.shapes.count(item.shape) == 1]
    if not single:
        return None
    item = rng.choice(single)
    return _colour_question(
        words.texts["colour"].format(words.shapes[item.shape]), item, scene, words, rng
    )


def _shape(scene: Scene, words: Words, rng: random.Random) -> Question:
    item = rng.choice(scene.items)
    text = words.texts["shape"].format(words.colours[item.colour])
    return _question(text, words.shapes[item.shape], list(words.shapes.values()), rng)


def _is_absent(scene: Scene, words: Words, rng: random.Random) -> Question | None:
    """Ask if a colour or a shape is nowhere; half of the answers are yes."""
    form, names, there = rng.choice((
        ("no colour", words.colours, scene.colours), ("no shape", words.shapes, scene.shapes)
    ))  # fmt: skip
    is_absent = rng.random() < 0.5
    fitting = [name for name in names if (name not in there) == is_absent]
    if not fitting:
        return None
    yes, no, *never = words.yes_no
    right, wrong = (yes, no) if is_absent else (no, yes)
    return Question(words.texts[form].format(names[rng.choice(fitting)]), [right, wrong, *never])


def _missing(scene: Scene, words: Words, rng: random.Random) -> Question | None:
    """Ask for the one colour of four that is not there."""
    if len(scene.items) < 3:
        return None
    absent = rng.choice([colour for colour in words.colours if colour not in scene.colours])
    options = [absent, *rng.sample(scene.colours, 3)]
    return Question(words.texts["missing"], [words.colours[colour] for colour in options])


def _outermost(scene: Scene, words: Words, rng: random.Random) -> Question | None:
    """Ask for the colour of what is farthest to one side, clearly before the next one."""
    form, axis, sign = rng.choice((
        ("leftmost", "x", 1), ("rightmost", "x", -1), ("highest", "y", 1), ("lowest", "y", -1)
    ))  # fmt: skip
    if len(scene.items) < 2:
        return None
    first, second, *_ = sorted(scene.items, key=lambda item: sign * getattr(item, axis))
    if abs(getattr(first, axis) - getattr(second, axis)) < APART_PX:
        return None
    return _colour_question(words.texts[form], first, scene, words, rng)


def _corner(scene: Scene, words: Words, rng: random.Random) -> Question | None:
    item = rng.choice(scene.items)
    right, down = item.x - scene.side / 2, item.y - scene.side / 2
    if min(abs(right), abs(down)) < APART_PX:
        return None
    text = words.texts["corner"].format(words.colours[item.colour], words.shapes[item.shape])
    return _question(text, words.corners[2 * (down > 0) + (right > 0)], words.corners, rng)


def _question(text: str, right: str, names: Sequence[str], rng: random.Random) -> Question:
    """Ask with three wrong options of `names`."""
    wrong = rng.sample([name for name in names if name != right], 3)
    return Question(text, [right, *wrong])


def _colour_question(
    text: str, item: Item, scene: Scene, words: Words, rng: random.Random
) -> Question:
    """Ask for an item's colour; wrong options are those of other items first."""
    others = [colour for colour in scene.colours if colour != item.colour]
    absent = [colour for colour in words.colours if colour not in scene.colours]
    wrong = [*others, *rng.sample(absent, len(absent))][:3]
    return Question(text, [words.colours[colour] for colour in (item.colour, *wrong)])


KINDS: Mapping[Callable[[Scene, Words, random.Random], Question | None], int] = {
    _colour: 7, _shape: 7, _is_absent: 6, _outermost: 3, _missing: 3, _sign: 2, _count: 1,
    _count_all: 1, _corner: 1,
}  # fmt: skip
"""Each asks about a scene, or returns None where it cannot; with its share in 31 questions."""

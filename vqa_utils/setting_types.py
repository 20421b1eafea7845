"""Define types and rules of settings, and their values as text. Standard library only."""

import dataclasses
import math
import os
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from vqa_utils.errors import VqaError

AUTO: Final = "auto"  # resolved later, from what the machine and the data allow
CountOrAuto: TypeAlias = int | Literal["auto"]
BoolOrAuto: TypeAlias = bool | Literal["auto"]

GIB = 2**30  # bytes
LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, of most file systems
UNITS = {"GB": 10**9, "GiB": GIB, "MB": 10**6, "MiB": 2**20}  # bytes
SIZE = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})")


class ConfigError(VqaError):
    """Unusable settings, with all their problems."""


@dataclass(frozen=True)
class Rule:
    """A condition on a setting's value, in words and as a test."""

    expected: str
    """completes "expected ..." in an error"""
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Setting:
    """One field of `Config`, apart from its name and its type."""

    default: Any
    meaning: str
    """for people, with the unit"""
    rule: Rule | None
    used_from: str
    """the first notebook that uses it, such as "04_infer"; "" if all do"""
    of_adapter: bool
    """whether a trained adapter depends on it"""
    is_added: bool
    """whether runs of versions without it did as its default does, and go on with this one"""


def setting(
    default: Any,
    meaning: str,
    rule: Rule | None = None,
    *,
    used_from: str = "",
    of_adapter: bool = True,
    is_added: bool = False,
) -> Any:
    """Define a field of `Config`; the arguments are those of `Setting`.

    A setting first used after the training is no part of the adapter.
    """
    about = Setting(default, meaning, rule, used_from, of_adapter and not used_from, is_added)
    return dataclasses.field(default=default, metadata={"setting": about})


def one_of(*values: Any) -> Rule:
    """Accept these values only: `"mean", "geometric" or "vote"`."""
    *others, last = [f'"{value}"' if isinstance(value, str) else str(value) for value in values]
    return Rule(f"{', '.join(others)} or {last}", lambda value: value in values)


def auto_or(rule: Rule) -> Rule:
    """Accept "auto" too."""
    return Rule(f'{rule.expected}, or "auto"', lambda value: value == AUTO or rule.holds(value))


def between(least: float, most: float, unit: str = "") -> Rule:
    """Accept numbers from `least` to `most`."""
    return Rule(f"{least:,} to {most:,} {unit}".rstrip(), lambda value: least <= value <= most)


ABOVE_ZERO = Rule("more than 0, and finite", lambda value: 0 < value < math.inf)
SHARE = Rule("0 to below 1", lambda value: 0 <= value < 1)
PLACE = Rule(f"a path without NUL, of names up to {LONGEST_NAME} bytes", lambda path: is_path(path))
SIZES = Rule("sizes such as 14GB or 13GiB", lambda sizes: all(map(is_size, sizes)))


def parse(text: str, kind: Any) -> Any:
    """Read a setting's value from its text.

    Raises:
        ValueError: the text is of another type.
    """
    if text == AUTO and kind in (CountOrAuto, BoolOrAuto):
        return text
    if kind in (bool, BoolOrAuto):
        # bool("false") is True, so that the words are compared
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if typing.get_origin(kind) is tuple:
        parts = [part.strip() for part in text.split(",")]
        return tuple(part for part in parts if part)
    if kind == CountOrAuto:
        return int(text)
    return kind(text)


def setting_text(value: Any) -> str:
    """Write a setting's value as `parse` reads it: "auto", "true", "5e-05", "14GB,14GB"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return repr(value).removesuffix(".0")  # 2.0 and 2 have one text
    return str(value)


def type_problem(name: str, value: Any, kind: Any) -> str | None:
    """Say how a setting's value differs from its type; None if it does not."""
    if typing.get_origin(kind) is tuple:
        fits = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    elif kind is float:
        # A whole number is a number too; a bool, an int to Python, is not
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    elif kind in (CountOrAuto, BoolOrAuto):
        number_or_bool = typing.get_args(kind)[0]
        fits = value == AUTO or type(value) is number_or_bool
    else:
        fits = type(value) is kind  # not isinstance: True is no whole number here
    return None if fits else f"{name}: expected {kind_name(kind)}, found {value!r}"


def kind_name(kind: Any) -> str:
    """Name a type for people."""
    names = {
        int: "a whole number",
        CountOrAuto: 'a whole number or "auto"',
        float: "a number",
        bool: "true or false",
        BoolOrAuto: 'true, false or "auto"',
        str: "text",
    }
    return names.get(kind, "values separated by commas")


def size_in_bytes(size: str) -> int:
    """Convert a size to bytes: "14GB" is 14e9 bytes, "13GiB" is 13 * 2**30.

    Raises:
        ValueError: it is no size.
    """
    found = SIZE.fullmatch(size)
    if found is None:
        raise ValueError(f"expected a size such as 14GB or 13GiB, found {size!r}")
    number, unit = found.groups()
    return int(float(number) * UNITS[unit])


def is_size(size: str) -> bool:
    """True if `size_in_bytes` can read it."""
    return SIZE.fullmatch(size) is not None


def is_path(text: str) -> bool:
    """True if a text can be a path, whether or not there is a file."""
    names = [len(os.fsencode(name)) for name in Path(text).parts]
    is_short = max(names, default=0) <= LONGEST_NAME and sum(names) + len(names) < LONGEST_PATH
    return is_short and "\0" not in text

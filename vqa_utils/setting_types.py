"""The types that a setting may have: read from text, checked, and written. Standard library only."""

import re
import typing
from typing import Any, Literal

from vqa_utils.errors import VqaError

COUNT_OR_AUTO, BOOL_OR_AUTO = int | Literal["auto"], bool | Literal["auto"]


class ConfigError(VqaError):
    """Settings that cannot be used, with all their problems."""


def parse(text: str, kind: Any) -> Any:
    """A setting's value from its text.

    Raises:
        ValueError: the text is of another type.
    """
    if text == "auto" and kind in (COUNT_OR_AUTO, BOOL_OR_AUTO):
        return text
    if kind in (bool, BOOL_OR_AUTO):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return int(text) if kind == COUNT_OR_AUTO else kind(text)


def setting_text(value: Any) -> str:
    """A setting's value as `parse` reads it: "auto", "true", "5e-05", "14GB,14GB"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def type_problem(name: str, value: Any, kind: Any) -> str | None:
    """What is wrong with the type of a setting's value; None where nothing is."""
    if typing.get_origin(kind) is tuple:
        fits = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    elif kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    elif kind in (COUNT_OR_AUTO, BOOL_OR_AUTO):
        fits = value == "auto" or type(value) is typing.get_args(kind)[0]
    else:
        fits = type(value) is kind
    return None if fits else f"{name}: expected {kind_name(kind)}, found {value!r}"


def kind_name(kind: Any) -> str:
    """A type in words."""
    names = {
        int: "a whole number",
        COUNT_OR_AUTO: 'a whole number or "auto"',
        float: "a number",
        bool: "true or false",
        BOOL_OR_AUTO: 'true, false or "auto"',
        str: "text",
    }
    return names.get(kind, "values separated by commas")


def size_in_bytes(size: str) -> int:
    """Bytes: "14GB" is 14e9 bytes, "13GiB" is 13 * 2**30."""
    number, unit = re.fullmatch(r"([\d.]+)\s*(GB|GiB|MB|MiB)", size).groups()
    return int(float(number) * {"GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20}[unit])


def is_size(size: str) -> bool:
    """Whether `size_in_bytes` can read it."""
    return re.fullmatch(r"\d+(\.\d+)?\s*(GB|GiB|MB|MiB)", size) is not None


def listed(problems: list[str]) -> str:
    """One message of all problems."""
    return "\n".join(["settings that cannot be used:", *(f"  - {problem}" for problem in problems)])

"""Write numbers as people do: 97.0 %, p < 0.001, +1.2, 3.4 GiB."""

import re
from collections.abc import Callable
from typing import Any

from vqa_utils.artifacts.timings import duration

SPACE = "\u202f"  # narrow, and no line breaks there
MINUS = "\u2212"
LEAST_P = 0.001  # a smaller p-value says no more to a reader
PERCENT_SIGN = re.compile(r"(?<=\d) ?%")
HYPHEN = re.compile(r"(?<![\w.-])-(?=\d)")  # in place of a minus


def percent(share: float) -> str:
    """Such as "97.0 %"."""
    return f"{100 * share:.1f}{SPACE}%"


def percent_tick(share: float) -> str:
    """A percentage at an axis, such as "97 %" or "97.5 %"."""
    return f"{round(100 * share, 2):g}{SPACE}%"


def points(share: float) -> str:
    """A difference of shares in points, such as "+1.3"."""
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", MINUS)  # no -0.0


def p_value(p: float) -> str:
    """Such as "p < 0.001" or "p = 0.024"."""
    return f"p{SPACE}<{SPACE}{LEAST_P}" if p < LEAST_P else f"p{SPACE}={SPACE}{p:.3f}"


def interval(low: float, high: float, kind: str = "percent") -> str:
    """Such as "95.7 to 97.9 %", as a range with a dash; of points, "−0.4 to +1.2"."""
    if kind == "points":
        return f"{points(low)} … {points(high)}"
    return f"{100 * low:.1f}–{percent(high)}"


def gib(size: float) -> str:
    """Such as "3.40 GiB"."""
    return f"{size:.2f}{SPACE}GiB"


def minutes(number: float) -> str:
    """Such as "40 s", "5 min" or "2 h 5 min"."""
    return duration(60 * number).replace(" ", SPACE)


def decimals(number: float) -> str:
    """Three decimals, as of a log loss."""
    return f"{number:.3f}"


def as_said(text: str) -> str:
    """Write percent and minus signs of a text as those of the page."""
    return HYPHEN.sub(MINUS, PERCENT_SIGN.sub(f"{SPACE}%", text))


KINDS: dict[str, Callable[[float], str]] = {
    "percent": percent,
    "points": points,
    "p_value": lambda p: p_value(p).removeprefix(f"p{SPACE}").removeprefix(f"={SPACE}"),
    "gib": gib,
    "minutes": minutes,
    "decimals": decimals,
}


def cell_text(value: Any, kind: str = "") -> str:
    """A cell of a table as text, "" of a missing value; numbers by their kind."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if kind in KINDS:
        return KINDS[kind](value)
    if isinstance(value, int) or value.is_integer():
        return f"{value:,.0f}".replace(",", SPACE)
    return f"{value:.4g}"

"""Read the values of run_all.py's options. Standard library only."""

import argparse
import re

from vqa_utils.setting_types import PLACE

MOST_GPUS = 16  # of one machine
STALL_SECONDS = 20 * 60.0  # a slow disk takes ten minutes for the base of the 30B


def seconds(text: str) -> float:
    """Read a duration such as "11.5h", "90min" or "45s".

    Raises:
        ArgumentTypeError: the text is no duration.
    """
    parts = re.fullmatch(r"(\d+(?:\.\d+)?) ?(h|min|s)", text)
    if not parts or float(parts[1]) == 0:
        raise argparse.ArgumentTypeError(
            f"expected a duration such as 11.5h, 90min or 45s, found {text!r}"
        )
    return float(parts[1]) * {"h": 3600, "min": 60, "s": 1}[parts[2]]


def path(text: str) -> str:
    """Read a path.

    Raises:
        ArgumentTypeError: the text can be none.
    """
    if not text or not PLACE.holds(text):
        raise argparse.ArgumentTypeError(f"expected {PLACE.expected}, found {text!r}")
    return text


def gpu_count(text: str) -> int:
    """Read a number of GPUs.

    Raises:
        ArgumentTypeError: the text is no number of GPUs in one machine.
    """
    if not re.fullmatch(r"\d{1,2}", text, re.ASCII) or not 1 <= int(text) <= MOST_GPUS:
        raise argparse.ArgumentTypeError(f"expected 1 to {MOST_GPUS}, found {text!r}")
    return int(text)


def names(text: str) -> tuple[str, ...]:
    """Read names such as "tensorboard,trackio"; "" is none."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def fold_numbers(text: str) -> list[int]:
    """Read fold numbers such as "0,2"; sorted, each once.

    Raises:
        ArgumentTypeError: the text is not a list of numbers.
    """
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected numbers such as 0,2, found {text!r}")
    return sorted({int(number) for number in text.split(",")})

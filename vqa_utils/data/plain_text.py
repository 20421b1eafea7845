"""Keep a row's words from being read as the chat's own marks, such as <|im_end|> or <|image_pad|>."""

import re
from collections.abc import Iterable
from typing import Any

from vqa_utils.prompts import LETTERS

# Whether a token or not: Qwen's processor has another mark that it takes for an image
MARKS = r"<\|[^<>|\s]+\|>"
TEXTS = ("question", *LETTERS, "instruction")


def marks_of(added_tokens: Iterable[str]) -> re.Pattern:
    """Return a pattern of all that a tokenizer, or a processor around it, takes for a mark.

    Args:
        added_tokens: of the tokenizer, beside those that it has learned.
    """
    longest_first = sorted(added_tokens, key=len, reverse=True)
    # A space within changes no other: "\n", or "  "
    broken = [token for token in longest_first if token not in _with_space(token)]
    return re.compile("|".join([MARKS, *map(re.escape, broken)]))


def as_plain_text(row: dict[str, Any], marks: re.Pattern) -> dict[str, Any]:
    """Return a row with a space in each mark, as in "< |im_end|>": words like any other."""
    texts = {name: str(row[name]) for name in TEXTS if name in row}
    for name, text in texts.items():
        while marks.search(text):  # again, as two halves may stand around what was one
            text = marks.sub(lambda mark: _with_space(mark[0]), text)
        texts[name] = text
    return row | texts


def _with_space(mark: str) -> str:
    return f"{mark[0]} {mark[1:]}"

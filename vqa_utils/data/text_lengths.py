"""Measure the texts of a challenge in tokens, by the model's tokenizer alone, and find outliers."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vqa_utils.prompts import TEMPLATE_TOKENS, instruction_of, question_text

# An outlier has more than twice the tokens of the median row, and so many more
FAR = 128
MOST_NAMED = 5  # outliers in a message


@dataclass(frozen=True)
class TextLengths:
    """Tokens of the rows' texts, instruction and chat template included."""

    usual: int
    """Of the longest row that is no outlier."""
    longest: int
    """Of the longest row."""
    outliers: Sequence[tuple[str, int]]
    """File and id of each, such as "test.csv, id q17", and its tokens; the longest first."""

    def describe_outliers(self) -> str:
        """Name the outliers; "" if there are none."""
        if not self.outliers:
            return ""
        named = [f"{row} ({tokens:,})" for row, tokens in self.outliers[:MOST_NAMED]]
        further = len(self.outliers) - len(named)
        more = f" and {further} more" if further else ""
        return (
            f"much longer than the others' up to {self.usual:,} tokens of text: "
            f"{', '.join(named)}{more}; they go through the model in passes of their own"
        )


def describe_texts(lengths: TextLengths | None) -> str:
    """Say how many tokens the texts have; None is of a model without a tokenizer here."""
    if lengths is None:
        return "The model's tokenizer is not here, so tokens are not counted."
    outliers = lengths.describe_outliers()
    others = f"{outliers[0].upper()}{outliers[1:]}." if outliers else "No row is much longer."
    return (
        f"The longest text has {lengths.longest:,} tokens, instruction and chat included. {others}"
    )


def measure_texts(
    rows_by_file: Mapping[str, pd.DataFrame], tokenizer: Path | None
) -> TextLengths | None:
    """Count the tokens of all rows; None without rows, or without a tokenizer.

    Args:
        rows_by_file: `id`, `question`, `a` to `d` of each file.
        tokenizer: the model's tokenizer.json.
    """
    if tokenizer is None:
        return None
    from tokenizers import Tokenizer  # a tenth of a second, and run_all.py --help needs none

    count = Tokenizer.from_file(str(tokenizer)).encode_batch
    names, texts = [], []
    for file, rows in rows_by_file.items():
        for row in rows.to_dict("records"):
            names.append(f"{file}, id {row['id']}")
            texts.append(f"{instruction_of(row)}{question_text(row)}")
    if not texts:
        return None
    tokens = [len(one) + TEMPLATE_TOKENS for one in count(texts, add_special_tokens=False)]
    usual = longest_usual(tokens)
    outliers = [(name, count) for name, count in zip(names, tokens, strict=True) if count > usual]
    outliers.sort(key=lambda outlier: outlier[1], reverse=True)
    return TextLengths(usual, max(tokens), outliers)


def longest_usual(lengths: Iterable[int]) -> int:
    """Return the most tokens of a row that is no outlier."""
    lengths = list(lengths)
    most = 2 * statistics.median(lengths) + FAR
    return max(length for length in lengths if length <= most)

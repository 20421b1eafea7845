"""Measure the texts of a challenge in tokens, by the model's tokenizer alone, and find outliers."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vqa_utils.data.challenge import TEST
from vqa_utils.data.paraphrases import wordings_of
from vqa_utils.data.plain_text import as_plain_text, marks_of
from vqa_utils.prompts import (
    TEMPLATE_TOKENS,
    USUAL,
    Prompt,
    instruction_of,
    question_text,
    text_before_image,
)

# An outlier has more than twice the tokens of the median row, and so many more
FAR = 128
MOST_NAMED = 5  # outliers in a message


@dataclass(frozen=True)
class TextLengths:
    """Tokens of the rows' texts, instruction and chat template included."""

    usual: int
    """Of the longest row that is no outlier."""
    longest_trained: int
    """Of the longest row to train on; 0 without any."""
    longest_test: int
    """Of the longest row of test.csv; 0 without any."""
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
    longest = max(lengths.longest_trained, lengths.longest_test)
    return f"The longest text has {longest:,} tokens, instruction and chat included. {others}"


def measure_texts(
    rows_by_file: Mapping[str, pd.DataFrame], tokenizer: Path | None, prompt: Prompt = USUAL
) -> TextLengths | None:
    """Count the tokens of all rows; None without rows, or without a tokenizer.

    Args:
        rows_by_file: `id`, `question`, `a` to `d` of each file. A row with `paraphrases` has the
            tokens of its longest wording.
        tokenizer: the model's tokenizer.json.
        prompt: of the run.
    """
    if tokenizer is None:
        return None
    from tokenizers import Tokenizer  # a tenth of a second, and run_all.py --help needs none

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()  # the file may ask for it
    encoder.no_truncation()
    by_file = {file: _tokens_of(rows, encoder, prompt) for file, rows in rows_by_file.items()}
    every_row = [count for tokens in by_file.values() for count in tokens]
    if not every_row:
        return None
    usual = longest_usual(every_row)
    outliers = []
    for file, tokens in by_file.items():
        for row_id, count in zip(rows_by_file[file]["id"], tokens, strict=True):
            if count > usual:
                outliers.append((f"{file}, id {row_id}", count))
    outliers.sort(key=lambda outlier: outlier[1], reverse=True)
    test = by_file.pop(TEST, [])
    trained = [count for tokens in by_file.values() for count in tokens]
    return TextLengths(usual, max(trained, default=0), max(test, default=0), outliers)


def longest_usual(lengths: Iterable[int]) -> int:
    """Return the most tokens of a row that is no outlier."""
    lengths = list(lengths)
    most = 2 * statistics.median(lengths) + FAR
    return max(length for length in lengths if length <= most)


def _tokens_of(rows: pd.DataFrame, encoder: Any, prompt: Prompt) -> list[int]:
    """Count each row's tokens, in its longest wording; the chat's own marks in it are text."""
    marks = marks_of(token.content for token in encoder.get_added_tokens_decoder().values())
    numbers, texts = [], []  # of each wording
    for number, row in enumerate(rows.to_dict("records")):
        for wording in wordings_of(row) if "paraphrases" in row else [row]:
            plain = as_plain_text({"instruction": prompt.instruction, **wording}, marks)
            numbers.append(number)
            user = f"{text_before_image(plain, prompt)}{question_text(plain)}"
            texts.append(f"{instruction_of(plain, prompt)}{user}")
    tokens = [0] * len(rows)
    encoded = encoder.encode_batch(texts, add_special_tokens=False)
    for number, one in zip(numbers, encoded, strict=True):
        tokens[number] = max(tokens[number], len(one) + TEMPLATE_TOKENS)
    return tokens

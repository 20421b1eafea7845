"""Prepare the rows to learn from, with their lengths in tokens."""

import itertools
from collections.abc import Sequence

import pandas as pd

from vqa_utils.config import Config
from vqa_utils.data.paraphrases import wordings_of
from vqa_utils.model.encoder import Encoder, Row
from vqa_utils.training._option_shuffling import ShuffledOptions
from vqa_utils.training._wordings import WordedRows


def training_rows(
    config: Config, encoder: Encoder, train: pd.DataFrame
) -> list[Row] | WordedRows | ShuffledOptions:
    """Make the rows to learn from for `StepTrainer`, each with its `length` in tokens."""
    rows = train.to_dict("records")
    measured = worded_rows(rows, encoder) if config.paraphrase else encoder.measured(rows)
    return ShuffledOptions(measured) if config.shuffle_options else measured


def in_all_wordings(config: Config, train: pd.DataFrame) -> list[Row]:
    """List the rows to learn from; with `paraphrase`, each in all its wordings."""
    rows = train.to_dict("records")
    if not config.paraphrase:
        return rows
    return list(itertools.chain.from_iterable(wordings_of(row) for row in rows))


def worded_rows(rows: Sequence[Row], encoder: Encoder) -> WordedRows:
    """Make all wordings of the rows, each with its own `length` in tokens."""
    wordings = [wordings_of(row) for row in rows]
    every_wording = list(itertools.chain.from_iterable(wordings))
    # All in one call: the tokenizer is fast on many texts, and images are looked at once
    measured = iter(encoder.measured(every_wording))
    by_row = []
    for of_row in wordings:
        by_row.append(list(itertools.islice(measured, len(of_row))))
    return WordedRows(by_row)

"""From the folds' probabilities to one answer a row."""

from collections.abc import Sequence

import pandas as pd

from vqa_utils.metrics import predictions
from vqa_utils.prompts import LETTERS


def mean_probabilities(members: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean of the members' probabilities, row by row.

    Args:
        members: frames with `id` and `a` to `d`, with the same ids in the same order.

    Raises:
        ValueError: there is no member, or two name different rows.
    """
    if not members:
        raise ValueError("expected at least one member to average, found none")
    ids = list(members[0]["id"])
    if any(list(member["id"]) != ids for member in members):
        raise ValueError("expected the same ids in the same order in all members, found different ones")
    mean = sum(member[list(LETTERS)] for member in members) / len(members)
    return pd.concat([members[0][["id"]], mean], axis=1)


def agreement(members: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The share of rows on which each pair of members predicts the same letter: a symmetric table."""
    letters = [predictions(member).to_numpy() for member in members]
    return pd.DataFrame([[float((x == y).mean()) for y in letters] for x in letters])


def submission(sample: pd.DataFrame, probs: pd.DataFrame) -> pd.DataFrame:
    """`id`, `answer`: the ids of sample_submission.csv in its order, each with its most probable letter.

    Raises:
        ValueError: a row of `sample` has no probabilities.
    """
    answers = dict(zip(probs["id"], predictions(probs), strict=True))
    missing = [i for i in sample["id"] if i not in answers]
    if missing:
        raise ValueError(f"expected probabilities for every id of sample_submission.csv, found none for {missing[:3]}")
    return pd.DataFrame({"id": sample["id"], "answer": [answers[i] for i in sample["id"]]})

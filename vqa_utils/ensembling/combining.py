"""Members' probabilities combined into one answer a row, and how far the members agree."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import softmax

from vqa_utils.ensembling.members import Member
from vqa_utils.ensembling.temperature import scaled, temperature_of
from vqa_utils.metrics import P_FLOOR, predictions
from vqa_utils.prompts import LETTERS

TIE_BREAK = 1e-3  # of a vote: what the mean weighs where letters have as many votes


def combined(frames: Sequence[pd.DataFrame], how: str) -> pd.DataFrame:
    """One distribution a row from the members': `id`, `a` to `d`.

    Args:
        frames: `id` and `a` to `d`, with the same ids in the same order.
        how: "mean"; "geometric", the normalised exp(mean log p); or "vote", the share of members that choose each letter, with
            the mean added at a weight that decides between equal shares alone.

    Raises:
        ValueError: there is no member, or two name different rows.
    """
    if not frames:
        raise ValueError("expected at least one member to combine, found none")
    ids = list(frames[0]["id"])
    if any(list(frame["id"]) != ids for frame in frames):
        raise ValueError(
            "expected the same ids in the same order in all members, found different ones"
        )
    values = np.stack([frame[list(LETTERS)].to_numpy() for frame in frames])  # [members, N, 4]
    probs = values.mean(axis=0)
    if how == "geometric":
        probs = softmax(np.log(values.clip(P_FLOOR)).mean(axis=0), axis=1)
    elif how == "vote":
        votes = sum(
            pd.get_dummies(predictions(frame)).reindex(columns=list(LETTERS), fill_value=0)
            for frame in frames
        )
        probs = (votes.to_numpy() + TIE_BREAK * probs) / (len(frames) + TIE_BREAK)
    return pd.DataFrame({"id": ids, **dict(zip(LETTERS, probs.T, strict=True))})


class Combination(NamedTuple):
    """Members' test probabilities, each scaled by its temperature, and their combination."""

    temperatures: dict[int, float]
    """by the member's number"""
    members: dict[str, pd.DataFrame]
    """`id`, `a` to `d` by the member's name"""
    test: pd.DataFrame
    """`id`, `a` to `d`"""


def combine_members(
    members: Sequence[Member], temperatures: Mapping[int, float], how: str
) -> Combination:
    """Scale each member's test probabilities by its temperature, and combine them.

    Args:
        members: the adapters' probabilities.
        temperatures: those in use by fold, see `temperature_of`; empty if calibration is off.
        how: see `combined`.
    """
    used = {member.number: temperature_of(temperatures, member.number) for member in members}
    calibrated = {member.name: scaled(member.test, used[member.number]) for member in members}
    return Combination(used, calibrated, combined(list(calibrated.values()), how))


def agreement(members: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The share of rows on which each pair of members predicts the same letter: a symmetric table.

    Args:
        members: `a` to `d` by the member's name, the same rows in the same order.
    """
    letters = {name: predictions(probs).to_numpy() for name, probs in members.items()}
    return pd.DataFrame(
        {a: {b: float((x == y).mean()) for b, y in letters.items()} for a, x in letters.items()}
    )


def unanimity(members: Sequence[Member]) -> float:
    """The share of test rows on which all members predict the same letter."""
    letters = pd.DataFrame({member.number: predictions(member.test) for member in members})
    return float((letters.nunique(axis=1) == 1).mean())


def submission(sample: pd.DataFrame, probs: pd.DataFrame) -> pd.DataFrame:
    """`id`, `answer`: the ids of sample_submission.csv in its order, each with its most probable letter.

    Raises:
        ValueError: a row of `sample` has no probabilities.
    """
    answers = dict(zip(probs["id"], predictions(probs), strict=True))
    missing = [i for i in sample["id"] if i not in answers]
    if missing:
        raise ValueError(
            f"expected probabilities for every id of sample_submission.csv, found none for {missing[:3]}"
        )
    return pd.DataFrame({"id": sample["id"], "answer": [answers[i] for i in sample["id"]]})


def describe_agreement(table: pd.DataFrame) -> str:
    """The agreement of members (see `ensemble.agreement`) in words."""
    if len(table) < 2:
        return "There is one member; agreement takes two."
    pairs = table.where(np.triu(np.ones(table.shape, bool), k=1)).stack()
    (a, b), least = pairs.idxmin(), pairs.min()
    return f"Least agreement: {a} and {b} choose the same letter in {least:.1%} of the test rows, different ones in {1 - least:.1%}."


def describe_unanimity(members: Sequence[Member]) -> str:
    """How often all members agree, in words."""
    if len(members) < 2:
        return "There is one member; agreement takes two."
    return f"All {len(members)} members choose the same letter in {unanimity(members):.1%} of {len(members[0].test)} test rows."

"""Combine members' probabilities into one answer per row; measure their agreement."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import softmax

from vqa_utils.ensembling.members import Member
from vqa_utils.ensembling.temperature import scaled, temperature_of
from vqa_utils.language import said
from vqa_utils.metrics import P_FLOOR, one_hot, option_matrix, predictions, with_options

# The weight of the mean beside the votes, in votes: enough to decide between letters with as many
# votes, too little to outweigh one
TIE_BREAK = 1e-3


def combine_members(
    members: Sequence[Member], temperatures: Mapping[int, float], how: str
) -> pd.DataFrame:
    """Scale each member's test probabilities by its temperature, then combine them.

    Args:
        members: a run's, from `read_members`.
        temperatures: by fold (see `temperature_of`); empty if calibration is off.
        how: "mean", "geometric" or "vote" (see `combined`).

    Returns:
        `id`, `a` to `d`: one distribution a test row.
    """
    frames = []
    for member in members:
        frames.append(scaled(member.test, temperature_of(temperatures, member.number)))
    return combined(frames, how)


def combined(frames: Sequence[pd.DataFrame], how: str) -> pd.DataFrame:
    """Combine several distributions per row into one: `id`, `a` to `d`.

    Args:
        frames: `id` and `a` to `d` of each member, with the same ids in the same order.
        how: "mean"; "geometric", the normalised exp(mean log p); or "vote", the share of members
            with that letter as their first, the mean deciding between equal shares.

    Raises:
        ValueError: there is no member, or two have different rows.
    """
    if not frames:
        raise ValueError("expected at least one member to combine, found none")
    ids = list(frames[0]["id"])
    if any(list(frame["id"]) != ids for frame in frames):
        raise ValueError(
            "expected the same ids in the same order in all members, found different ones"
        )
    by_member = np.stack([option_matrix(frame) for frame in frames])  # [members, N, 4]
    if how == "geometric":
        mean_log = np.log(by_member.clip(P_FLOOR)).mean(axis=0)  # [N, 4]
        probs = softmax(mean_log, axis=1)
    elif how == "vote":
        votes = np.sum([one_hot(predictions(frame)) for frame in frames], axis=0)  # [N, 4]
        weighted = votes + TIE_BREAK * by_member.mean(axis=0)
        # A row's votes sum to the number of members, its mean to 1
        probs = weighted / (len(frames) + TIE_BREAK)
    else:
        probs = by_member.mean(axis=0)
    return with_options(pd.DataFrame({"id": ids}), probs)


def agreement(members: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tabulate the share of rows on which two members agree: a symmetric table.

    Args:
        members: `a` to `d` by the member's name, the same rows in the same order.
    """
    letters = {name: predictions(probs).to_numpy() for name, probs in members.items()}
    table = pd.DataFrame(index=list(letters), columns=list(letters), dtype=float)
    for first in letters:
        for second in letters:
            table.loc[first, second] = (letters[first] == letters[second]).mean()
    return table


def unanimity(members: Sequence[Member]) -> float:
    """Return the share of test rows on which all members agree."""
    # Letters [N, members]
    letters = pd.DataFrame({member.number: predictions(member.test) for member in members})
    return float((letters.nunique(axis=1) == 1).mean())


def submission(sample: pd.DataFrame, probs: pd.DataFrame) -> pd.DataFrame:
    """Pick the most probable letter for each id of sample_submission.csv, in its order.

    Returns:
        `id` and `answer`.

    Raises:
        ValueError: a row of `sample` has no probabilities.
    """
    letters = dict(zip(probs["id"], predictions(probs), strict=True))
    missing = [row_id for row_id in sample["id"] if row_id not in letters]
    if missing:
        raise ValueError(
            "expected probabilities for every id of sample_submission.csv, "
            f"found none for {missing[:3]}"
        )
    return pd.DataFrame({"id": sample["id"], "answer": sample["id"].map(letters)})


def describe_agreement(table: pd.DataFrame) -> str:
    """Name the two members with the least `agreement`."""
    if len(table) < 2:
        return "There is one member; agreement takes two."
    pairs = combinations(table.columns, 2)
    first, second = min(pairs, key=lambda pair: table.loc[pair])
    least = table.loc[first, second]
    return (
        f"Least agreement: {first} and {second} choose the same letter in {least:.1%} of the "
        f"test rows, different ones in {1 - least:.1%}."
    )


def describe_unanimity(members: Sequence[Member]) -> str:
    """Say how often all members agree."""
    if len(members) < 2:
        return said("There is one member; agreement takes two.")
    return said(
        "All {members} members choose the same letter in {share} of {rows} test rows.",
        members=len(members),
        share=f"{unanimity(members):.1%}",
        rows=len(members[0].test),
    )

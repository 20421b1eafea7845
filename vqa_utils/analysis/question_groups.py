"""Group questions that may be hard: by kind, words, right option, image size, right letter."""

import numpy as np
import pandas as pd

from vqa_utils.data.question_kinds import QUESTION_PATTERNS, question_kinds
from vqa_utils.metrics import at_letter
from vqa_utils.prompts import LETTERS

NEGATION = r"아닌|아니|없는|없이|않|제외|\bnot?\b|n't\b|\bnone\b|\bwithout\b|\bexcept\b"
LENGTH_RANKS = ("longest", "second", "third", "shortest")
ALL_ALIKE = "all alike"


def question_groups(rows: pd.DataFrame, pixels: np.ndarray, clusters: pd.Series) -> pd.DataFrame:
    """Find the groups of each row.

    Groups overlap; of groups with exactly the same rows, the first stands for all.

    Args:
        rows: `question`, `a` to `d`, `answer`.
        pixels: of each row's image, int [N].
        clusters: of each row's question (see `clusters.question_clusters`).

    Returns:
        bool [N, G]; a column's name is a pair such as ("kind", "counting").
    """
    labels = {
        "kind": question_kinds(rows),
        "cluster": clusters,
        "right option": length_ranks(rows),
        "image": size_quarters(pixels),
        "right letter": rows["answer"],
    }
    masks: dict[tuple[str, str], np.ndarray] = {}
    for by, label_of_row in labels.items():
        for label in label_of_row.value_counts().index:  # the largest group first
            masks[by, label] = (label_of_row == label).to_numpy()
    question = rows["question"].str.lower()
    for name, pattern in {"negation": NEGATION, **QUESTION_PATTERNS}.items():
        masks["question has", name] = question.str.contains(pattern).to_numpy()
    return _different_groups(masks)


def length_ranks(rows: pd.DataFrame) -> pd.Series:
    """Rank the right option among the four by its characters, from longest to shortest.

    Ties take the longer rank; four of one length are `ALL_ALIKE`.
    """
    lengths = rows[list(LETTERS)].map(len).to_numpy()  # [N, 4]
    right_length = at_letter(lengths, rows["answer"])[:, None]  # [N, 1]
    longer_options = (lengths > right_length).sum(axis=1)  # [N]
    ranks = np.take(LENGTH_RANKS, longer_options)
    all_alike = (lengths == right_length).all(axis=1)
    return pd.Series(np.where(all_alike, ALL_ALIKE, ranks), rows.index)


def size_quarters(pixels: np.ndarray) -> pd.Series:
    """Each image's quarter by size, named by its range in pixels.

    There are fewer quarters if sizes repeat, and one if all are the same.

    Args:
        pixels: int [N], N at least one.
    """
    # Sizes that occur; an edge is the largest size of its quarter
    edges = np.quantile(pixels, (0.25, 0.5, 0.75), method="lower")
    sizes = pd.Series(pixels)
    by_quarter = sizes.groupby(np.searchsorted(edges, pixels))
    smallest, largest = by_quarter.transform("min"), by_quarter.transform("max")
    return smallest.combine(largest, _range_name)


def _range_name(low: int, high: int) -> str:
    return f"{low:,} px" if low == high else f"{low:,} to {high:,} px"


def _different_groups(masks: dict[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """The groups with rows, each set of rows once, bool [N, G]."""
    different = {}
    seen = set()
    for name, mask in masks.items():
        if mask.any() and mask.tobytes() not in seen:
            different[name] = mask
            seen.add(mask.tobytes())
    return pd.DataFrame(different, columns=pd.MultiIndex.from_tuples(list(different)))

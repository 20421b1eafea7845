"""Which rows belong together: those of one picture, of nearly one, or of one question."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vqa_utils.config import Config
from vqa_utils.data.challenge import Challenge

HASH_BITS = 64
HINT_BITS = (
    4  # copies of a photograph in another size or quality were within it, see tests/bench/README.md
)
LARGE_GROUP = 0.05  # of the rows
SHOWN = 6  # ids named


class NearHashes:
    """Perceptual hashes, to be asked for those that differ from another in a few bits.

    Where at most `bits` bits differ, one of `bits` + 1 bands is equal: only hashes that share a band are compared (Manku, Jain,
    Das Sarma 2007, "Detecting near-duplicates for web crawling").
    """

    def __init__(self, hashes: Iterable[str], bits: int):
        self.values, self.bits = np.array([int(digits, 16) for digits in hashes], np.uint64), bits
        edges = np.linspace(0, HASH_BITS, bits + 2).astype(int)
        self._bands = [
            (np.uint64(low), np.uint64((1 << (high - low)) - 1)) for low, high in pairwise(edges)
        ]
        rows = pd.Series(range(len(self.values)))
        self._buckets = [
            rows.groupby((self.values >> low) & mask).indices for low, mask in self._bands
        ]

    def near(self, value: np.uint64) -> np.ndarray:
        """The positions of the hashes within the bits of `value`, ascending."""
        bands = zip(self._bands, self._buckets, strict=True)
        shared = [
            bucket[part]
            for (low, mask), bucket in bands
            if (part := (value >> low) & mask) in bucket
        ]
        if not shared:
            return np.empty(0, int)
        candidates = np.concatenate(shared)
        return np.unique(candidates[np.bitwise_count(self.values[candidates] ^ value) <= self.bits])


def near_groups(hashes: Iterable[str], bits: int) -> np.ndarray:
    """Group near hashes: each joins the first one that leads a group within `bits` of it, or else leads a group itself.

    Linking all near pairs would chain: pictures that change little from one to the next would end in one group, first and last
    alike or not. Here two of a group differ in at most twice the bits.

    Returns:
        [rows] the number of each row's group.
    """
    codes, different = pd.factorize(np.asarray(list(hashes), object))
    index = NearHashes(different, bits)
    leader = np.full(len(different), -1)
    for position, value in enumerate(index.values):
        if leader[position] < 0:
            near = index.near(value)
            leader[near[leader[near] < 0]] = position
    return leader[codes]


def row_groups(challenge: Challenge, config: Config) -> list[str]:
    """A label a train row; rows of one label have to stay in one fold.

    With `group_questions`, rows are joined by picture or by question, and so on from row to row: neither is to be seen twice.

    Args:
        challenge: loaded with its images checked.
        config: `near_duplicates`, `group_questions`.

    Returns:
        The content hash of the first picture of each row's group.
    """
    images = challenge.images.loc[challenge.train["path"]].reset_index(drop=True)
    groups = (
        near_groups(images["perceptual_hash"], config.near_duplicates)
        if config.near_duplicates
        else images["hash"]
    )
    if config.group_questions:
        groups = _joined(groups, asked(challenge.train))
    return images["hash"].groupby(groups).transform("first").tolist()


def same_words(questions: pd.Series) -> pd.Series:
    """Questions without what makes no difference: capitals, punctuation, spaces, the way that Unicode composes letters."""
    return (
        questions.str.normalize("NFKC")
        .str.casefold()
        .str.replace(r"[\W_]+", " ", regex=True)
        .str.strip()
    )


def asked(rows: pd.DataFrame) -> pd.Series:
    """What each row asks (see `same_words`), in all words that it may be trained in; their index is the row's.

    Args:
        rows: `question`, and under `paraphrase` the `paraphrases`.
    """
    others = rows["paraphrases"] if "paraphrases" in rows else [()] * len(rows)
    wordings = [[question, *more] for question, more in zip(rows["question"], others, strict=True)]
    return same_words(pd.Series(wordings, rows.index, dtype=object).explode())


def near_leaks(folds: pd.DataFrame, hashes: pd.Series, bits: int) -> pd.Series:
    """The ids of rows whose picture is within `bits` of one in another fold.

    Args:
        folds: `id` and `fold`, a line a row.
        hashes: the rows' perceptual hashes, in the same order.
    """
    known = folds_of(hashes, folds["fold"])
    seen = folds_near(known, known, bits)
    return folds["id"][hashes.map(lambda digits: len(seen[digits]) > 1).to_numpy()]


def folds_of(keys: pd.Series, fold: pd.Series) -> dict[str, set[int]]:
    """The folds of each key's rows. Rows are matched by position."""
    return fold.groupby(keys.to_numpy()).agg(set).to_dict()


def folds_near(hashes: Iterable[str], known: dict[str, set[int]], bits: int) -> dict[str, set[int]]:
    """For each different one of some perceptual hashes, the folds that have a hash within `bits` of it."""
    folds, index = list(known.values()), NearHashes(known, bits)
    return {
        digits: set().union(*(folds[i] for i in index.near(np.uint64(int(digits, 16)))))
        for digits in set(hashes)
    }


def describe_groups(groups: list[str]) -> str:
    """The sizes of groups in words, with a warning where one is large."""
    largest = pd.Series(groups).value_counts().iloc[0]
    share = largest / len(groups)
    lines = [
        f"{len(set(groups))} groups stay together; the largest has {largest} rows ({share:.1%})."
    ]
    if largest > 1 and share > LARGE_GROUP:
        lines.append(
            f"Warning: one group holds more than {LARGE_GROUP:.0%} of the rows, so that folds may differ in size and kind. "
            "Look at its pictures and questions; where they were joined, a smaller near_duplicates or group_questions=false parts them."
        )
    return "\n".join(lines)


def describe_near_leaks(leaking: pd.Series, bits: int, config: Config) -> str:
    """What `near_leaks` found, in words: a hint where such pictures are not grouped."""
    found = f"{len(leaking)} rows show a picture within {bits} of {HASH_BITS} bits of one in another fold"
    if leaking.empty:
        return f"{found}."
    found += f", such as {', '.join(leaking.head(SHOWN))}"
    if config.near_duplicates:
        return f"{found}: near each other, but not near one first picture. Linking them too would chain unlike pictures."
    return f"{found}. Where those are copies, near_duplicates={bits} keeps them together; where they are only alike, it need not."


def _joined(groups: pd.Series | np.ndarray, keys: pd.Series) -> np.ndarray:
    """Numbers of the groups that rows form which share a group or a key, directly or through other rows.

    Args:
        groups: one a row, by position.
        keys: any number a row, by index.
    """
    (first, names), (second, others) = pd.factorize(np.asarray(groups)), pd.factorize(keys)
    size = len(names) + len(others)
    edges = coo_array((np.ones(len(keys)), (first[keys.index], second + len(names))), (size, size))
    return connected_components(edges, directed=False)[1][first]

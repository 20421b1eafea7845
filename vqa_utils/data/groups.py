"""Group rows by picture, near-identical picture, or question."""

from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vqa_utils.config import Config
from vqa_utils.data.challenge import Challenge

HASH_BITS = 64
HINT_BITS = 4  # copies of a photograph in other sizes differed by less, see tests/bench/README.md
LARGE_GROUP = 0.05  # of the rows
SHOWN = 6  # ids named


class NearHashes:
    """Perceptual hashes that can be searched for those near another one.

    Of two hashes that differ in at most `bits` bits, one of `bits` + 1 bands is equal, so that only
    hashes with an equal band are compared (Manku, Jain, Das Sarma 2007, "Detecting near-duplicates
    for web crawling"). With 3 bits, the bands of a hash are:

        bit   63 ..... 48 47 ..... 32 31 ..... 16 15 ...... 0
               band 3      band 2      band 1      band 0
    """

    def __init__(self, hashes: Iterable[str], bits: int):
        """Index the hashes (16 hex digits each) by their bands."""
        self.values = np.array([int(digits, 16) for digits in hashes], np.uint64)  # [N]
        self.bits = bits
        # bits + 2 edges of bits + 1 bands: 0, 16, 32, 48, 64 for 3 bits
        edges = np.linspace(0, HASH_BITS, bits + 2).astype(int)
        positions = pd.Series(range(len(self.values)))
        self._bands = []  # a shift and a mask each, and the positions of the hashes by their value
        for low, high in pairwise(edges):
            shift, mask = np.uint64(low), np.uint64((1 << int(high - low)) - 1)
            buckets = positions.groupby((self.values >> shift) & mask).indices
            self._bands.append((shift, mask, buckets))

    def near(self, value: np.uint64) -> np.ndarray:
        """The positions of the hashes within the bits of `value`, ascending."""
        candidates = [np.empty(0, int)]
        for shift, mask, buckets in self._bands:
            candidates.append(buckets.get((value >> shift) & mask, candidates[0]))
        positions = np.concatenate(candidates)
        distances = np.bitwise_count(self.values[positions] ^ value)  # Hamming distance, bits
        return np.unique(positions[distances <= self.bits])  # a hash may share several bands


def near_groups(hashes: Iterable[str], bits: int) -> np.ndarray:
    """Group near hashes: each joins the first leader within `bits` of it, or else leads a group.

    Linking all near pairs would chain: pictures that change little from one to the next would end
    in one group, with first and last unlike each other. Here two of a group differ in at most
    twice the bits.

    Returns:
        The number of each hash's group, int [N].
    """
    codes, different = pd.factorize(np.asarray(list(hashes), object))  # [N], [D]
    index = NearHashes(different, bits)
    leader = np.full(len(different), -1)  # [D]; -1: in no group yet
    for position, value in enumerate(index.values):
        if leader[position] < 0:
            near = index.near(value)
            leader[near[leader[near] < 0]] = position
    return leader[codes]


def row_groups(challenge: Challenge, config: Config) -> list[str]:
    """Label the train rows: rows of one label have to stay in one fold.

    With `group_questions`, rows that share a picture or a question are joined, directly or through
    other rows: a fold is to train on neither of a row that it holds out.

    Args:
        challenge: loaded with its images checked.
        config: `near_duplicates`, `group_questions`.

    Returns:
        The content hash of the first picture of each row's group.
    """
    images = challenge.images_of(challenge.train)
    groups = images["hash"].to_numpy()
    if config.near_duplicates:
        groups = near_groups(images["perceptual_hash"], config.near_duplicates)
    if config.group_questions:
        groups = _joined(groups, asked(challenge.train))
    return images["hash"].groupby(groups).transform("first").tolist()


def _joined(groups: np.ndarray, keys: pd.Series) -> np.ndarray:
    """Join groups whose rows share a key, directly or through other rows.

    Groups and keys are the nodes of a graph, and each row has an edge from its group to each of its
    keys. The connected parts are the new groups:

        row 0  x - p
        row 1  y - p, y - q
        row 2  z - r            parts {x, y, p, q} and {z, r}  ->  [0, 0, 1]

    Args:
        groups: one per row, by position.
        keys: any number per row; the index says of which row.

    Returns:
        The number of each row's new group, int [N].
    """
    group_codes, group_names = pd.factorize(groups)
    key_codes, key_names = pd.factorize(keys)
    size = len(group_names) + len(key_names)
    from_groups = group_codes[keys.index]
    to_keys = key_codes + len(group_names)  # the keys' nodes come after the groups'
    edges = coo_array((np.ones(len(keys)), (from_groups, to_keys)), (size, size))
    _, part_of_node = connected_components(edges, directed=False)
    return part_of_node[group_codes]


def same_words(questions: pd.Series) -> pd.Series:
    """Reduce questions to their words: no capitals, punctuation or spaces, one Unicode form."""
    # NFKC makes full-width letters plain, and composes decomposed Hangul
    composed = questions.str.normalize("NFKC").str.casefold()
    return composed.str.replace(r"[\W_]+", " ", regex=True).str.strip()


def asked(rows: pd.DataFrame) -> pd.Series:
    """List the words (see `same_words`) that each row is asked in, its paraphrases' included.

    Args:
        rows: `question`, and with `paraphrase` on `paraphrases`.

    Returns:
        One or more texts per row; the index is the row's.
    """
    if "paraphrases" not in rows:
        return same_words(rows["question"])
    wordings = []
    for question, paraphrases in zip(rows["question"], rows["paraphrases"], strict=True):
        wordings.append([question, *paraphrases])
    return same_words(pd.Series(wordings, rows.index, dtype=object).explode())


def near_leaks(folds: pd.DataFrame, hashes: pd.Series, bits: int) -> pd.Series:
    """The ids of rows whose picture is within `bits` of one in another fold.

    Args:
        folds: `id` and `fold`, one line per row.
        hashes: the rows' perceptual hashes, in the same order.
    """
    known = folds_of(hashes, folds["fold"])
    seen = folds_near(known, known, bits)
    is_leaking = [len(seen[digits]) > 1 for digits in hashes]  # its own fold is one
    return folds["id"][is_leaking]


def folds_of(keys: pd.Series, fold: pd.Series) -> dict[str, set[int]]:
    """The folds of each key's rows. Rows are matched by position."""
    return fold.groupby(keys.to_numpy()).agg(set).to_dict()


def folds_near(
    hashes: Iterable[str], known: Mapping[str, set[int]], bits: int
) -> dict[str, set[int]]:
    """Find the folds that have a hash within `bits` of each of some perceptual hashes.

    Args:
        known: the folds of each hash that they have.
    """
    folds = list(known.values())
    index = NearHashes(known, bits)
    found = {}
    for digits in set(hashes):
        near = index.near(np.uint64(int(digits, 16)))
        found[digits] = set().union(*(folds[position] for position in near))
    return found


def describe_groups(groups: list[str]) -> str:
    """Say how large the groups are, with a warning if one is large."""
    largest = pd.Series(groups).value_counts().iloc[0]
    share = largest / len(groups)
    said = f"{len(set(groups))} groups stay together; the largest has {largest} rows ({share:.1%})."
    if largest == 1 or share <= LARGE_GROUP:
        return said
    return (
        f"{said}\n"
        f"Warning: one group holds more than {LARGE_GROUP:.0%} of the rows, so that folds may "
        "differ in size and kind. Look at its pictures and questions; where they were joined, a "
        "smaller near_duplicates or group_questions=false parts them."
    )


def describe_near_leaks(leaking: pd.Series, bits: int, config: Config) -> str:
    """Say what `near_leaks` has found, with a hint if such pictures are not grouped."""
    found = (
        f"{len(leaking)} rows show a picture within {bits} of {HASH_BITS} bits of one in another "
        "fold"
    )
    if leaking.empty:
        return f"{found}."
    found += f", such as {', '.join(leaking.head(SHOWN))}"
    if config.near_duplicates:
        return (
            f"{found}: near each other, but not near one first picture. Linking them too would "
            "chain unlike pictures."
        )
    return (
        f"{found}. Where those are copies, near_duplicates={bits} keeps them together; where they "
        "are only alike, it need not."
    )

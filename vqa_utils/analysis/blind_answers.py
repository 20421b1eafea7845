"""Answer without the image: by letter frequency, option length and words."""

import re
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from vqa_utils.data.folds import ALWAYS_TRAIN
from vqa_utils.metrics import one_hot
from vqa_utils.prompts import LETTERS

FIT_QUESTIONS = 10_000  # of the other folds at most: the text model's time stays linear and short
FEATURES = 2**18  # hashes of the features of a pair; few of 100,000 collide

Predictions: TypeAlias = pd.DataFrame | pd.Series
"""Probabilities (`a` to `d`), or the letters of a rule without probabilities"""


def answers_without_images(
    train: pd.DataFrame, folds: pd.DataFrame, ids: Iterable[str], seed: int
) -> dict[str, Predictions]:
    """Answer the rows `ids` in three ways, each learned from the rows of other folds.

    Args:
        train: the train rows.
        folds: `fold`, in the order of `train`.
        ids: held-out rows.
        seed: draws the text model's rows, if there are more than `FIT_QUESTIONS`.

    Returns:
        By name, in the order of `ids`.
    """
    # Row numbers in `train`, in the order of `ids`
    positions = pd.Series(np.arange(len(train)), index=train["id"]).loc[list(ids)]
    of_all_rows: dict[str, Predictions] = {
        "most frequent letter": letter_shares(train, folds),
        "longest option": longest_option(train),
        "text alone (TF-IDF)": text_model(train, folds, seed),
    }
    chosen: dict[str, Predictions] = {}
    for name, predicted in of_all_rows.items():
        chosen[name] = predicted.iloc[positions].reset_index(drop=True)
    return chosen


def letter_shares(train: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """Each letter's share of the answers in the other folds, for each train row.

    The most probable letter is then the most frequent one. One is added to each count (Laplace),
    so that a letter without answers there stays possible.

    Returns:
        `a` to `d`, in the order of `train`.
    """
    counts = pd.crosstab(folds["fold"].to_numpy(), train["answer"].to_numpy())  # folds x letters
    counts = counts.reindex(columns=LETTERS, fill_value=0)
    in_other_folds = counts.sum() - counts + 1  # [folds, 4]
    shares = in_other_folds.div(in_other_folds.sum(axis=1), axis=0)
    return shares.loc[folds["fold"]].reset_index(drop=True)


def longest_option(train: pd.DataFrame) -> pd.Series:
    """The letter of the option with most characters; the earlier one at a tie."""
    return train[list(LETTERS)].map(len).idxmax(axis=1)


def text_model(train: pd.DataFrame, folds: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Probabilities `a` to `d` of each held-out row, from question and options alone.

    A logistic regression tells right options from wrong ones by TF-IDF of their text, alone and
    together with each word of the question. A row's four probabilities are scaled to a sum of 1.
    Rows that no fold holds out are NaN.
    """
    features = _pair_features(train)  # [4 N, features]
    is_right = one_hot(train["answer"]).astype(bool)  # [N, 4]
    fold_of_row = folds["fold"].to_numpy()
    rng = np.random.default_rng(seed)
    values = np.full((len(train), len(LETTERS)), np.nan)
    for fold in sorted(set(fold_of_row) - {ALWAYS_TRAIN}):
        held_out = np.flatnonzero(fold_of_row == fold)
        others = np.flatnonzero(fold_of_row != fold)
        # Sorted: if none is left out, the fit is the same with any seed
        others = np.sort(rng.permutation(others)[:FIT_QUESTIONS])
        # Tenfold the default tolerance: the order of the options is final long before the weights
        model = make_pipeline(TfidfTransformer(), LogisticRegression(tol=1e-3))
        model.fit(features[_pairs_of(others)], is_right[others].ravel())
        p_right = model.predict_proba(features[_pairs_of(held_out)])[:, 1]  # [4 n]
        values[held_out] = p_right.reshape(-1, len(LETTERS))
    return pd.DataFrame(values / values.sum(axis=1, keepdims=True), columns=list(LETTERS))


def _pair_features(train: pd.DataFrame) -> csr_matrix:
    """Count the features of each question with each of its options, [4 N, features].

    Row 4 i + j is question i with option j. Features are hashed: no vocabulary is learned, so
    that it is the same for all folds and cannot be empty.
    """
    questions = train["question"].repeat(len(LETTERS))
    options = train[list(LETTERS)].to_numpy().ravel()  # [4 N], row by row
    # Plain counts, none negative, as TfidfTransformer takes them
    vectorizer = HashingVectorizer(
        analyzer=_features, n_features=FEATURES, alternate_sign=False, norm=None
    )
    counts = vectorizer.transform(zip(questions, options, strict=True))
    used = np.unique(counts.indices)  # a hundredth of the columns; the fit pays for empty ones too
    return counts[:, used]


def _pairs_of(rows: np.ndarray) -> np.ndarray:
    """The rows of `_pair_features` of some questions, [4 n]."""
    count = len(LETTERS)
    return (rows[:, None] * count + np.arange(count)).ravel()


def _features(pair: tuple[str, str]) -> list[str]:
    """The features of a question with an option.

    The option as a whole, its words, its 1 to 3 characters in a row, and its words beside those of
    the question. A Korean word is a stem with endings, so that its first two characters often say
    as much as the word.
    """
    question, option = (text.strip().lower() for text in pair)
    asked = set()
    for word in re.findall(r"\w+", question):
        asked |= {word, word[:2]}
    said = {option, *re.findall(r"\w+", option)}
    # "=" keeps a word apart from the same characters in a row
    features = [f"={word}" for word in said]
    for length in (1, 2, 3):
        starts = range(len(option) - length + 1)
        features += [option[start : start + length] for start in starts]
    for asked_word in asked:
        features += [f"{asked_word}+{said_word}" for said_word in said]
    return features

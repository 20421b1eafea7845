"""What a score is worth: the fine-tuned model beside its base, blank images, and answers that never see an image."""

import re
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config
from vqa_utils.data.folds import ALWAYS_TRAIN
from vqa_utils.data.question_kinds import question_kinds
from vqa_utils.ensembling.members import pooled, rows_of
from vqa_utils.metrics import (
    BEYOND_CHANCE,
    accuracy_interval,
    correct,
    expected_calibration_error,
    log_loss,
    mcnemar,
)
from vqa_utils.prompts import LETTERS

SETS = {"oof": "fine-tuned", "zero_shot": "base, zero-shot", "blank": "fine-tuned, blank images"}
FIT_QUESTIONS = 10_000  # the text model learns from so many of the other folds' at most: its time stays linear and short
FEATURES = 2**18  # hashes of what a pair says; few of 100,000 meet another


def baseline_table(
    paths: RunPaths,
    config: Config,
    folds: pd.DataFrame,
    train: pd.DataFrame,
    without_images: Mapping[str, pd.DataFrame | pd.Series] | None = None,
) -> pd.DataFrame:
    """The fine-tuned model against its base, blank images and answers without images, on the same held-out rows.

    Args:
        paths: the run's.
        config: the run's; `zero_shot` and `blank` are there where `baselines` is set.
        folds: `id` and `fold` of the train rows.
        train: the train rows.
        without_images: more of them, such as `answers_without_images` gives.

    Returns:
        `model`, `accuracy` with its 95 % interval from `low` to `high`, `not_yes_no` (accuracy on the rows that are no yes/no
        question), `log_loss` and `calibration_error` (NaN for a rule without probabilities), `mcnemar_p` (against the
        fine-tuned model).
    """
    tuned = pooled(paths, config, folds, "oof")
    rows = rows_of(tuned, train)
    right = correct(tuned, rows["answer"])
    open_rows = (question_kinds(rows) != "yes/no").to_numpy()
    models = {name: pooled(paths, config, folds, key) for key, name in SETS.items()} | dict(
        without_images or {}
    )
    lines = []
    for name, chosen in models.items():
        if chosen is not None:
            is_rule = isinstance(chosen, pd.Series)
            hits = (
                chosen.to_numpy() == rows["answer"].to_numpy()
                if is_rule
                else correct(chosen, rows["answer"])
            )
            low, high = accuracy_interval(hits)
            lines.append({
                "model": name,
                "accuracy": hits.mean(),
                "low": low,
                "high": high,
                "not_yes_no": hits[open_rows].mean() if open_rows.any() else np.nan,
                "log_loss": np.nan if is_rule else log_loss(chosen, rows["answer"]),
                "calibration_error": np.nan if is_rule else expected_calibration_error(chosen, rows["answer"]),
                "mcnemar_p": np.nan if chosen is models[SETS["oof"]] else mcnemar(right, hits),
            })  # fmt: skip
    return pd.DataFrame(lines)


def describe_baselines(table: pd.DataFrame) -> str:
    """The baseline table in words."""
    tuned, *others = table.to_dict("records")
    lines = [
        f"fine-tuned: {tuned['accuracy']:.3f} right (95 % interval {tuned['low']:.3f} to {tuned['high']:.3f})"
    ]
    for other in others:
        gap = (tuned["accuracy"] - other["accuracy"]) * 100
        beyond = f"{'beyond' if other['mcnemar_p'] < BEYOND_CHANCE else 'not beyond'} chance (p = {other['mcnemar_p']:.2g})"
        lines.append(
            f"{other['model']}: {other['accuracy']:.3f}, {gap:+.1f} points for the fine-tuned, {beyond}"
        )
    return "\n".join(lines)


def answers_without_images(
    train: pd.DataFrame, folds: pd.DataFrame, ids: Iterable[str], seed: int
) -> dict[str, pd.DataFrame | pd.Series]:
    """Three answers to the rows `ids`, in their order, by name; what is learned is learned from the rows of other folds.

    Args:
        train: the train rows.
        folds: `fold`, in the order of `train`.
        ids: held-out rows.
        seed: draws the rows that the text model learns from, where there are more than it takes.

    Returns:
        Probabilities (`a` to `d`), or for a rule its letters.
    """
    place = pd.Series(np.arange(len(train)), train["id"]).loc[ids]
    found = {
        "most frequent letter": letter_shares(train, folds),
        "longest option": longest_option(train),
        "text alone (TF-IDF)": text_model(train, folds, seed),
    }
    return {name: answers.iloc[place].reset_index(drop=True) for name, answers in found.items()}


def letter_shares(train: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """Each letter's share of the answers in the other folds, for each train row: its first maximum is the frequent letter.

    One is added to each count (Laplace), so that a letter that is no answer there is not impossible.
    """
    counts = pd.crosstab(folds["fold"].to_numpy(), train["answer"].to_numpy()).reindex(
        columns=list(LETTERS), fill_value=0
    )
    others = counts.sum() - counts + 1
    return others.div(others.sum(axis=1), axis=0).loc[folds["fold"]].reset_index(drop=True)


def longest_option(train: pd.DataFrame) -> pd.Series:
    """The letter of the option with most characters; the earlier one at a tie."""
    return train[list(LETTERS)].map(len).idxmax(axis=1)


def text_model(train: pd.DataFrame, folds: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Probabilities `a` to `d` for each held-out row, from question and options alone.

    A logistic regression tells right options from wrong ones by the TF-IDF of what they say, alone and together with each
    word of the question; the four probabilities of a row are then scaled to a sum of 1. Rows that no fold holds out are NaN.
    """
    pairs, fold = _pairs(train), folds["fold"].to_numpy()
    right = train[["answer"]].to_numpy() == np.array(LETTERS)
    rng, values = np.random.default_rng(seed), np.full((len(train), len(LETTERS)), np.nan)
    for k in sorted(set(fold) - {ALWAYS_TRAIN}):
        others, held_out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        others = np.sort(rng.permutation(others)[:FIT_QUESTIONS])
        # Tenfold the tolerance: which option is the likeliest settles long before the weights do
        model = make_pipeline(TfidfTransformer(), LogisticRegression(tol=1e-3))
        model.fit(pairs[_options(others)], right[others].ravel())
        values[held_out] = model.predict_proba(pairs[_options(held_out)])[:, 1].reshape(
            -1, len(LETTERS)
        )
    return pd.DataFrame(values / values.sum(axis=1, keepdims=True), columns=list(LETTERS))


def _pairs(train: pd.DataFrame) -> csr_matrix:
    """Counts of the features of each question with each of its options, [4 N, features].

    Hashed: no vocabulary is learned, so it is the same for all folds, and cannot be empty.
    """
    texts = zip(
        train["question"].repeat(len(LETTERS)), train[list(LETTERS)].to_numpy().ravel(), strict=True
    )
    pairs = HashingVectorizer(
        analyzer=_features, n_features=FEATURES, alternate_sign=False, norm=None
    ).transform(texts)
    return pairs[
        :, np.unique(pairs.indices)
    ]  # a hundredth of the columns, and of what the fit spends on empty ones


def _options(rows: np.ndarray) -> np.ndarray:
    return (rows[:, None] * len(LETTERS) + np.arange(len(LETTERS))).ravel()


def _features(pair: tuple[str, str]) -> list[str]:
    """The option as a whole, its words and its 1 to 3 characters in a row, and its words beside those of the question.

    A Korean word is a stem with endings, so that its first two characters often say as much as the word.
    """
    question, option = (text.strip().lower() for text in pair)
    asked = {part for word in re.findall(r"\w+", question) for part in (word, word[:2])}
    said = {option, *re.findall(r"\w+", option)}
    grams = [option[i : i + n] for n in (1, 2, 3) for i in range(len(option) - n + 1)]
    return [*(f"={word}" for word in said), *grams, *(f"{q}+{o}" for q in asked for o in said)]

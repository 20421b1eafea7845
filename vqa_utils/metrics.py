"""Scores of option probabilities, and what chance makes of their differences."""

import numpy as np
import pandas as pd
from scipy.stats import binom, binomtest
from sklearn.metrics import log_loss as sklearn_log_loss

from vqa_utils.prompts import LETTERS

BEYOND_CHANCE = 0.01  # McNemar's p below which a difference is called more than chance
P_FLOOR = 1e-12  # the least probability whose logarithm is taken
DRAWS = (
    2000  # of the bootstrap of a mean; its interval is then off by a fiftieth of its width or so
)
DECIMALS = 12  # letters that differ by less are tied: sums of the same numbers do, in another order


def option_matrix(probs: pd.DataFrame) -> np.ndarray:
    """The probabilities of the options a to d, float [N, 4]."""
    return probs[list(LETTERS)].to_numpy(dtype=float)


def with_options(frame: pd.DataFrame, matrix: np.ndarray) -> pd.DataFrame:
    """The frame with the columns a to d from float [N, 4]; the inverse of `option_matrix`."""
    return frame.assign(**dict(zip(LETTERS, matrix.T, strict=True)))


def one_hot(letters: pd.Series) -> np.ndarray:
    """1.0 at each row's letter, float [N, 4]."""
    return (letters.to_numpy()[:, None] == np.array(LETTERS)).astype(float)


def at_letter(matrix: np.ndarray, letters: pd.Series) -> np.ndarray:
    """Each row's value at its letter: [N] from [N, 4]. Rows are matched by position."""
    columns = [LETTERS.index(letter) for letter in letters]
    return matrix[np.arange(len(matrix)), columns]


def predictions(probs: pd.DataFrame) -> pd.Series:
    """The most probable letter of each row; the earlier letter at a tie."""
    return probs[list(LETTERS)].round(DECIMALS).idxmax(axis=1)


def tied(probs: pd.DataFrame) -> pd.Series:
    """Whether several letters of a row share the highest probability, bool."""
    values = probs[list(LETTERS)].round(DECIMALS)
    return values.eq(values.max(axis=1), axis=0).sum(axis=1) > 1


def correct(probs: pd.DataFrame, answers: pd.Series) -> np.ndarray:
    """Whether the most probable letter is the answer, bool [N]. Rows are matched by position."""
    return predictions(probs).to_numpy() == answers.to_numpy()


def accuracy(probs: pd.DataFrame, answers: pd.Series) -> float:
    """The share of right rows, the challenge's metric."""
    return float(correct(probs, answers).mean())


def accuracy_interval(right: np.ndarray | pd.Series, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap's interval of the accuracy, from bool [N]; NaN of no rows.

    Efron (1979): N rows are drawn with replacement, and the interval holds the middle `level` of the accuracies found. As
    many of the N are right as a binomial says, so its quantiles are what ever more draws come to.
    """
    if not len(right):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = binom.ppf([tail, 1 - tail], len(right), np.mean(right)) / len(right)
    return float(low), float(high)


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The percentile bootstrap's interval of the mean over rows, from float [N] or [N, M] (Efron 1979); NaN of fewer than two."""
    rng, rows, tail = np.random.default_rng(0), len(values), (1 - level) / 2
    if rows < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    means = [
        np.bincount(rng.integers(rows, size=rows), minlength=rows) @ values / rows
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values [M] of M tests, adjusted so that one below 0.05 by chance is found in 5 % of such sets at most (Holm 1979).

    The tests may depend on each other in any way.
    """
    order = np.argsort(p_values)
    steps = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(steps, 1)
    return adjusted


def log_loss(probs: pd.DataFrame, answers: pd.Series) -> float:
    """Mean negative log-probability of the answer, in nats (chance on four options: 1.386)."""
    return float(sklearn_log_loss(answers, probs[list(LETTERS)].to_numpy(), labels=list(LETTERS)))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided exact p-value that two models are right equally often, from bool [N] over the same rows.

    McNemar (1947): only rows on which the two differ count, and by chance half of them favour either.
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def reliability(probs: pd.DataFrame, answers: pd.Series, bins: int = 10) -> pd.DataFrame:
    """Confidence against accuracy in equal-width bins of confidence: `confidence`, `accuracy`, `rows`; empty bins left out."""
    confidence = probs[list(LETTERS)].max(axis=1).to_numpy()
    bin_of_row = np.minimum((confidence * bins).astype(int), bins - 1)
    frame = pd.DataFrame(
        {"bin": bin_of_row, "confidence": confidence, "right": correct(probs, answers)}
    )
    grouped = frame.groupby("bin")
    return pd.DataFrame(
        {
            "confidence": grouped["confidence"].mean(),
            "accuracy": grouped["right"].mean(),
            "rows": grouped.size(),
        }
    )


def expected_calibration_error(probs: pd.DataFrame, answers: pd.Series, bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by rows (Guo et al. 2017, equation 3)."""
    table = reliability(probs, answers, bins)
    return float(
        (table["rows"] * (table["confidence"] - table["accuracy"]).abs()).sum()
        / table["rows"].sum()
    )

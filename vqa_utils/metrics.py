"""Score option probabilities, tell how much of their differences is chance, and write scores.

`probs` is a table with the columns a to d, one row per question; `answers` holds the right letters.
The two are matched by position, not by index.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # it loads scipy.stats, half a second, when that is named first

from vqa_utils.prompts import LETTERS

# McNemar's p below which a difference is called more than chance: 0.05, shared by five comparisons
# (Bonferroni), as many as 06_analysis makes
BEYOND_CHANCE = 0.01
P_FLOOR = 1e-12  # the least probability whose logarithm is taken
DRAWS = 2000  # of the bootstrap of a mean; its interval is off by about a fiftieth of its width
LEAST_WRITTEN = 0.001  # three decimals: a difference of 0.001 is one row in a thousand
DECIMALS = 12  # closer probabilities are tied: sums in another order differ by rounding alone


def number_text(value: float) -> str:
    """Write a number of a table with three decimals; a positive one below 0.001 as "<0.001"."""
    if 0 < value < LEAST_WRITTEN:
        return f"<{LEAST_WRITTEN}"
    return f"{value:z.3f}"  # z: no -0.000


def p_text(p: float) -> str:
    """Write a p-value in a sentence, as "p = 0.012" or "p < 0.001"."""
    if p < LEAST_WRITTEN:
        return f"p < {LEAST_WRITTEN}"
    return f"p = {p:.3f}"


def asked_text(level: float, why: str = "") -> str:
    """Name the level that a p-value missed: "; below 0.01 is asked for, as 2 are compared"."""
    reason = f", as {why}" if why else ""
    return f"; below {level} is asked for{reason}"


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


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
    """Take each row's value at its letter: [N] from [N, 4]."""
    columns = [LETTERS.index(letter) for letter in letters]
    return matrix[np.arange(len(matrix)), columns]


def predictions(probs: pd.DataFrame) -> pd.Series:
    """The most probable letter of each row; the earlier letter at a tie."""
    rounded = probs[list(LETTERS)].round(DECIMALS)
    return rounded.idxmax(axis=1)


def tied(probs: pd.DataFrame) -> pd.Series:
    """True for rows with several letters at the highest probability, bool."""
    rounded = probs[list(LETTERS)].round(DECIMALS)
    is_highest = rounded.eq(rounded.max(axis=1), axis=0)  # [N, 4]
    return is_highest.sum(axis=1) > 1


def correct(probs: pd.DataFrame, answers: pd.Series) -> np.ndarray:
    """True for rows with the answer as their most probable letter, bool [N]."""
    return predictions(probs).to_numpy() == answers.to_numpy()


def accuracy(probs: pd.DataFrame, answers: pd.Series) -> float:
    """The share of right rows, the challenge's metric."""
    return float(correct(probs, answers).mean())


def accuracy_interval(right: np.ndarray | pd.Series, level: float = 0.95) -> Interval:
    """Wilson's score interval of an accuracy, from bool [N]; NaN of no rows.

    It has a width at 0 and 100 % too, unlike a bootstrap, and covers the true accuracy about as
    often as `level` says at any N.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference";
    recommended by Brown, Cai and DasGupta (2001), "Interval estimation for a binomial proportion".
    """
    if not len(right):
        return Interval(float("nan"), float("nan"))
    found = scipy.stats.binomtest(int(np.sum(right)), len(right)).proportion_ci(
        level, method="wilson"
    )
    return Interval(float(found.low), float(found.high))


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The percentile bootstrap's interval of the mean over rows (Efron 1979).

    Args:
        values: float [N] or [N, M].
        level: the share of cases with the true mean in the interval.

    Returns:
        The low and the high end, each [] or [M]; NaN of fewer than two rows.
    """
    rows = len(values)
    if rows < 2:
        nothing = np.full(values.shape[1:], np.nan)
        return nothing, nothing
    rng = np.random.default_rng(0)  # fixed: equal values get equal intervals
    means = []
    for _ in range(DRAWS):
        drawn = rng.integers(rows, size=rows)
        times_drawn = np.bincount(drawn, minlength=rows)  # [N]
        means.append(times_drawn @ values / rows)  # [] or [M]
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust the p-values [M] of M tests for their number (Holm 1979).

    If no difference is real, an adjusted value below 0.05 is found in 5 % of such sets at most. The
    tests may depend on each other in any way.
    """
    order = np.argsort(p_values)
    tests_left = np.arange(len(p_values), 0, -1)  # M, M - 1, ..., 1
    # Step down from the smallest p: a larger one never gets a smaller adjusted value
    steps = np.maximum.accumulate(p_values[order] * tests_left)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(steps, 1)
    return adjusted


def log_loss(probs: pd.DataFrame, answers: pd.Series) -> float:
    """Mean negative log-probability of the answer, in nats (chance on four options: 1.386)."""
    from sklearn.metrics import log_loss as sklearn_log_loss  # as slow, and few commands need it

    # With `labels`, a letter that is no row's answer keeps its column
    return float(sklearn_log_loss(answers, option_matrix(probs), labels=list(LETTERS)))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided exact p-value of two models being right equally often, from bool [N] each.

    McNemar (1947): only rows with one of the two right count. By chance, half of them favour either.
    """
    only_first = int((first & ~second).sum())
    only_second = int((~first & second).sum())
    differing = only_first + only_second
    if differing == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_first, differing).pvalue)


def reliability(probs: pd.DataFrame, answers: pd.Series, bins: int = 10) -> pd.DataFrame:
    """Compare confidence with accuracy in equal-width bins of confidence.

    Returns:
        `confidence`, `accuracy`, `rows`: one line per bin, without empty bins.
    """
    confidence = option_matrix(probs).max(axis=1)  # [N]
    bin_of_row = np.minimum((confidence * bins).astype(int), bins - 1)  # 1.0 is in the last bin
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
    """Mean distance between confidence and accuracy over the bins, weighted by rows.

    Source: Guo et al. (2017), equation 3.
    """
    table = reliability(probs, answers, bins)
    distance = (table["confidence"] - table["accuracy"]).abs()
    return float((table["rows"] * distance).sum() / table["rows"].sum())

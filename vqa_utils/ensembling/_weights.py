"""Weights of a linear mixture of models, fitted on out-of-fold rows and judged on rows that the fit did not see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.stats import permutation_test
from sklearn.model_selection import GroupKFold

from vqa_utils.metrics import P_FLOOR
from vqa_utils.prompts import LETTERS

PARTS = 5  # of the rows: weights are fitted on four and judged on the fifth
SIGNIFICANT = 0.05
RESAMPLES = 9999


@dataclass(frozen=True)
class Mixture:
    """The members' weights, and how they compare with the plain mean on rows that their fit did not see."""

    weights: dict[str, float]
    """those in use, by member: the fitted ones, or equal ones"""
    uses_fit: bool
    p: float
    """that the fitted weights and the mean are equally good"""
    fitted: pd.DataFrame
    """a line a part and one for all rows: `fitted without`, `rows`, a column a member, `log_loss`, `log_loss_mean`, both of the
    rows that the line's fit did not see (in the last line, of all parts together)"""
    oof: pd.DataFrame
    """`id`, `a` to `d`: each row mixed by weights that were fitted without it, or by equal ones"""

    def describe(self) -> str:
        """Which weights are used, and why, in words."""
        fit, mean = self.fitted.iloc[-1][["log_loss", "log_loss_mean"]]
        compared = f"log loss {fit:.4f} against {mean:.4f} of the plain mean, on rows that the fit did not see (p = {self.p:.2g})"
        verdict = (
            "lower beyond chance, so the fitted weights are used"
            if self.uses_fit
            else "not lower beyond chance, so the mean is used"
        )
        return f"Fitted weights: {compared}: {verdict}."


def fit_mixture(
    members: Mapping[str, pd.DataFrame], answers: pd.Series, groups: Sequence[str], seed: int
) -> Mixture:
    """Fit weights that sum to 1, and keep them where they beat the plain mean.

    They have to have the lower mean log loss on rows outside their fit, with p below 0.05 (`sign_flip_p`).

    Args:
        members: `id` and `a` to `d` by the member's name, the same rows in the same order.
        answers: the right letters, by position.
        groups: one label a row, by position; rows of one group (here: of one image) are fitted or judged together.
        seed: of the parts and of the test.
    """
    names, frames = list(members), list(members.values())
    right = np.column_stack([probability_of(frame, answers) for frame in frames])  # [N, members]
    equal = np.full(len(names), 1 / len(names))
    mean, nested = mixed(frames, equal), mixed(frames, equal)
    loss, loss_mean = np.empty(len(right)), -np.log(right @ equal)
    lines = []
    splitter = GroupKFold(min(PARTS, len(set(groups))), shuffle=True, random_state=seed)
    for number, (seen, unseen) in enumerate(splitter.split(right, groups=groups)):
        weights = fit_weights(right[seen])
        nested.iloc[unseen] = mixed([frame.iloc[unseen] for frame in frames], weights)
        loss[unseen] = -np.log(right[unseen] @ weights)
        lines.append(
            [f"part {number}", len(unseen), *weights, loss[unseen].mean(), loss_mean[unseen].mean()]
        )
    everything = fit_weights(right)
    lines.append(["none", len(right), *everything, loss.mean(), loss_mean.mean()])
    fitted = pd.DataFrame(
        lines, columns=["fitted without", "rows", *names, "log_loss", "log_loss_mean"]
    )
    p = sign_flip_p(loss - loss_mean, groups, seed)
    better = bool(p < SIGNIFICANT and loss.mean() < loss_mean.mean())
    weights = dict(zip(names, map(float, everything if better else equal), strict=True))
    return Mixture(weights, better, p, fitted, nested if better else mean)


def fit_weights(right: np.ndarray) -> np.ndarray:
    """The weights [members] on the simplex with the least log loss, from the probability [N, members] of the right letters.

    The loss -mean log(right @ w) is convex in w; the search starts from equal weights.
    """
    count = right.shape[1]

    def loss_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixture = right @ weights
        return -np.log(mixture).mean(), -(right / mixture[:, None]).mean(axis=0)

    on_simplex = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(count)}
    found = minimize(
        loss_and_gradient, np.full(count, 1 / count), jac=True, method="SLSQP", bounds=[(0, 1)] * count, constraints=on_simplex,
        options={"ftol": 1e-10, "maxiter": 500},
    )  # fmt: skip
    weights = np.clip(found.x, 0, 1)
    return weights / weights.sum()


def sign_flip_p(differences: np.ndarray, groups: Sequence[str], seed: int) -> float:
    """Two-sided p-value that paired differences have mean 0, by flipping the sign of each group's sum.

    A permutation test of the mean itself, which the fit lowers: Wilcoxon's ranks would ignore the few rows with a large loss,
    and a t-test takes their differences for normal. Questions on one picture are not independent, so they flip together.
    """
    sums = pd.Series(differences).groupby(np.asarray(groups)).sum().to_numpy()
    found = permutation_test(
        (sums, np.zeros_like(sums)), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=RESAMPLES, batch=500, random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)


def mixed(frames: Sequence[pd.DataFrame], weights: Sequence[float]) -> pd.DataFrame:
    """The weighted mean of `a` to `d`, row by row."""
    letters = list(LETTERS)
    return frames[0].assign(
        **sum(frame[letters] * w for frame, w in zip(frames, weights, strict=True))
    )


def probability_of(probs: pd.DataFrame, answers: pd.Series) -> np.ndarray:
    """The probability of each row's right letter, [N], at least `P_FLOOR`."""
    places = answers.map(LETTERS.index).to_numpy()
    return probs[list(LETTERS)].to_numpy()[np.arange(len(probs)), places].clip(P_FLOOR)

"""Fit mixture weights on out-of-fold rows; judge them on other rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.stats import permutation_test
from sklearn.model_selection import GroupKFold

from vqa_utils.metrics import P_FLOOR, asked_text, at_letter, option_matrix, p_text, with_options

PARTS = 5  # of the rows: weights are fitted on four and judged on the fifth
SIGNIFICANT = 0.05
LEAST_WEIGHT = 1e-5  # a smaller one is an error of the fit, see `fit_weights`
RESAMPLES = 9999  # p-values down to 1 in 10,000, in under a second for 10,000 groups


@dataclass(frozen=True)
class Mixture:
    """The members' weights, compared with others on rows outside their fit."""

    weights: dict[str, float]
    """in use, by member: the fitted ones, or the others"""
    uses_fit: bool
    others: str
    """what the weights to beat are called, such as `the plain mean`"""
    p: float
    """that the fitted weights and the others are equally good"""
    fitted: pd.DataFrame
    """one line per part and one for all rows: `fitted without`, `rows`, a weight for each member,
    `log_loss`, `log_loss_mean` (by the others); both losses of the rows outside the line's fit (in
    the last line, of all parts together)"""
    oof: pd.DataFrame
    """`id`, `a` to `d`: each row mixed by weights fitted without it, or by the others"""

    def describe(self) -> str:
        """Name the weights in use, with the reason."""
        log_loss, log_loss_of_others = self.fitted.iloc[-1][["log_loss", "log_loss_mean"]]
        verdict = f"not lower beyond chance, so {self.others} is used"
        if self.uses_fit:
            verdict = "lower beyond chance, so the fitted weights are used"
        asked = asked_text(SIGNIFICANT) if self.p >= SIGNIFICANT else ""
        return (
            f"Fitted weights: log loss {log_loss:.3f} against {log_loss_of_others:.3f} of "
            f"{self.others}, on rows that the fit did not see ({p_text(self.p)}{asked}): {verdict}."
        )


class _Part(NamedTuple):
    """Some rows, and the weights fitted on all others."""

    rows: np.ndarray
    """their positions"""
    weights: np.ndarray
    """[members]"""


def fit_mixture(
    members: Mapping[str, pd.DataFrame],
    answers: pd.Series,
    groups: pd.Series,
    seed: int,
    *,
    otherwise: Sequence[float] = (),
    called: str = "the plain mean",
) -> Mixture:
    """Fit weights that sum to 1, and keep them if they beat others, by default the plain mean's.

    They beat them with a lower mean log loss on rows outside their fit, and p below `SIGNIFICANT`
    (see `sign_flip_p`).

    Args:
        members: `id` and `a` to `d` by the member's name, the same rows in the same order.
        answers: the right letters, by position.
        groups: one label per row, by position; rows of one group (here: of one image) are fitted or
            judged together.
        seed: of the parts and of the test.
        otherwise: the weights to beat; by default, equal ones.
        called: their name.
    """
    frames = list(members.values())
    right = np.column_stack([probability_of(frame, answers) for frame in frames])  # [N, members]
    equal = np.full(len(members), 1 / len(members))
    others = np.asarray(otherwise) if otherwise else equal
    parts = _fit_parts(right, groups, seed)
    loss = np.empty(len(right))  # [N] nats, each row by weights fitted without it
    for part in parts:
        loss[part.rows] = -np.log(right[part.rows] @ part.weights)
    loss_of_others = -np.log(right @ others)  # [N] nats
    p = sign_flip_p(loss - loss_of_others, groups, seed)
    uses_fit = bool(p < SIGNIFICANT and loss.mean() < loss_of_others.mean())

    fitted = fit_weights(right)  # on all rows: for the test rows, seen by no fit
    in_use = fitted if uses_fit else others
    return Mixture(
        weights=dict(zip(members, in_use.tolist(), strict=True)),
        uses_fit=uses_fit,
        others=called,
        p=p,
        fitted=_weights_table(list(members), parts, fitted, loss, loss_of_others),
        oof=_mixed_by_part(frames, parts) if uses_fit else mixed(frames, others),
    )


def fit_weights(right: np.ndarray) -> np.ndarray:
    """Fit the weights [members] on the simplex with the least log loss.

    The loss -mean log(right @ w) is convex in w; the search starts from equal weights.

    Args:
        right: the probabilities [N, members] of the right letters.
    """
    count = right.shape[1]

    def loss_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixture = right @ weights  # [N]
        # d/dw of -mean log(right @ w) is -mean(right / mixture), [members]
        return -np.log(mixture).mean(), -(right / mixture[:, None]).mean(axis=0)

    sum_is_one = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(count)}
    found = minimize(
        loss_and_gradient,
        np.full(count, 1 / count),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints=sum_is_one,
        # The loss is flat at its minimum: an error of e there is about sqrt(e) in a weight
        options={"ftol": 1e-10, "maxiter": 500},
    )
    # SLSQP stops near a bound, on either side of it
    weights = np.where(found.x < LEAST_WEIGHT, 0.0, found.x)
    return weights / weights.sum()


def sign_flip_p(differences: np.ndarray, groups: Sequence[str] | pd.Series, seed: int) -> float:
    """Two-sided p-value of the hypothesis that paired differences have mean 0.

    A permutation test of the mean itself, which the fit lowers: Wilcoxon's ranks would ignore the
    few rows with a large loss, and a t-test takes their differences for normal. Questions on one
    picture depend on each other, so the sign of a whole group is flipped.

    Args:
        differences: float [N].
        groups: one label per row.
        seed: of the random flips.
    """
    sums = pd.Series(differences).groupby(np.asarray(groups)).sum().to_numpy()  # [groups]
    found = permutation_test(
        (sums, np.zeros_like(sums)),  # to swap a sum with its 0 is to flip its sign
        # The mean over groups is the mean over rows times N / groups, a constant
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=500,  # flips at once: bounds the memory to 500 x groups numbers
        random_state=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def mixed(frames: Sequence[pd.DataFrame], weights: Sequence[float] | np.ndarray) -> pd.DataFrame:
    """The weighted mean of `a` to `d`, row by row, beside the other columns of the first frame."""
    mixture = np.zeros_like(option_matrix(frames[0]))  # [N, 4]
    for frame, weight in zip(frames, weights, strict=True):
        mixture += option_matrix(frame) * weight
    return with_options(frames[0], mixture)


def probability_of(probs: pd.DataFrame, answers: pd.Series) -> np.ndarray:
    """The probability of each row's right letter, [N], at least `P_FLOOR`."""
    return at_letter(option_matrix(probs), answers).clip(P_FLOOR)


def _fit_parts(right: np.ndarray, groups: pd.Series, seed: int) -> list[_Part]:
    """Cross-fitting: each part of the rows with weights fitted on the other parts."""
    part_count = min(PARTS, len(set(groups)))
    splitter = GroupKFold(part_count, shuffle=True, random_state=seed)
    parts = []
    for seen, unseen in splitter.split(right, groups=groups):
        parts.append(_Part(unseen, fit_weights(right[seen])))
    return parts


def _mixed_by_part(frames: Sequence[pd.DataFrame], parts: Sequence[_Part]) -> pd.DataFrame:
    """Each row mixed by the weights of its part."""
    mixture = np.empty_like(option_matrix(frames[0]))  # [N, 4]
    for part in parts:
        part_frames = [frame.iloc[part.rows] for frame in frames]
        mixture[part.rows] = option_matrix(mixed(part_frames, part.weights))
    return with_options(frames[0], mixture)


def _weights_table(
    names: Sequence[str],
    parts: Sequence[_Part],
    fitted: np.ndarray,
    loss: np.ndarray,
    loss_of_mean: np.ndarray,
) -> pd.DataFrame:
    """The table `Mixture.fitted`, from the losses [N] of all rows."""
    # Its weights have seen all rows; its losses are still those of the parts, outside their fit
    everything = _Part(np.arange(len(loss)), fitted)
    labels = [*(f"part {number}" for number in range(len(parts))), "none"]
    lines = []
    for label, part in zip(labels, [*parts, everything], strict=True):
        lines.append({
            "fitted without": label,
            "rows": len(part.rows),
            **dict(zip(names, part.weights, strict=True)),
            "log_loss": loss[part.rows].mean(),
            "log_loss_mean": loss_of_mean[part.rows].mean(),
        })  # fmt: skip
    return pd.DataFrame(lines)

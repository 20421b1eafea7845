"""Temperature scaling of a fold's probabilities, judged on rows that its fit did not see (Guo et al. 2017)."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.model_selection import GroupKFold

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.metrics import P_FLOOR, accuracy, expected_calibration_error, log_loss
from vqa_utils.prompts import LETTERS

BOUNDS = (0.05, 20.0)
PARTS = 5  # of the rows: a temperature is fitted on four and judged on the fifth


@dataclass(frozen=True)
class Calibration:
    """A run's temperatures, and what they do to rows that their fit did not see. Rows are matched by position."""

    setting: bool | Literal["auto"]
    temperatures: dict[int, float]
    """by fold, fitted on all rows that it held out"""
    before: pd.DataFrame
    """`id`, `a` to `d`, `fold`: the out-of-fold probabilities as they were scored"""
    after: pd.DataFrame
    """the same rows, each scaled by a temperature that was fitted without it"""
    answers: pd.Series

    @property
    def on(self) -> bool:
        """Whether probabilities are scaled: "auto" does where it lowers the log loss of all rows."""
        if self.setting == "auto":
            return log_loss(self.after, self.answers) < log_loss(self.before, self.answers)
        return self.setting

    @property
    def oof(self) -> pd.DataFrame:
        """The out-of-fold probabilities to go on with."""
        return self.after if self.on else self.before

    @property
    def in_use(self) -> dict[int, float]:
        """The temperatures of the test probabilities, by fold; none where calibration is off."""
        return self.temperatures if self.on else {}

    def table(self) -> pd.DataFrame:
        """A line a fold and one for all: `fold`, `rows`, `temperature`, then log loss and calibration error before and after."""
        lines = []
        everywhere = pd.Series(True, index=self.before.index)
        for fold, rows in [
            *((k, self.before["fold"] == k) for k in self.temperatures),
            ("all", everywhere),
        ]:
            line = {
                "fold": fold,
                "rows": int(rows.sum()),
                "temperature": self.temperatures.get(fold, np.nan),
            }
            for name, score in (
                ("log_loss", log_loss),
                ("calibration_error", expected_calibration_error),
            ):
                line[name] = score(self.before[rows], self.answers[rows])
                line[f"{name}_after"] = score(self.after[rows], self.answers[rows])
            lines.append(line)
        return pd.DataFrame(lines)

    def describe(self) -> str:
        """Whether it is on, and why, in words."""
        before, after = (log_loss(probs, self.answers) for probs in (self.before, self.after))
        state = "on" if self.on else "off"
        why = (
            f"it {'lowers' if after < before else 'does not lower'} the log loss"
            if self.setting == "auto"
            else "as set"
        )
        return (
            f"Calibration is {state} (calibrate={str(self.setting).lower()}): {why}; on rows that the fit did not see, "
            f"{before:.4f} becomes {after:.4f}.\n"
            f"A temperature keeps the order of a row's options, so accuracy stays {accuracy(self.oof, self.answers):.3f}."
        )


def temperature_of(temperatures: Mapping[int, float], number: int) -> float:
    """The temperature of a model's test probabilities.

    Args:
        temperatures: those in use, by fold; empty where calibration is off, which leaves probabilities as they are.
        number: of the model. One without held-out rows to fit a temperature on, such as the refit, gets the geometric mean of the
            others': a temperature scales, and a mean of scales multiplies.
    """
    return temperatures.get(number) or (
        statistics.geometric_mean(temperatures.values()) if temperatures else 1.0
    )


def temperatures_of(paths: RunPaths) -> dict[int, float]:
    """The temperatures in use, by model, that 05_ensemble wrote; none where calibration is off, or it has not run yet."""
    written = read_json(paths.members)["temperatures"] if paths.members.exists() else {}
    return {int(fold): temperature for fold, temperature in written.items()}


def calibrated_oof(paths: RunPaths, ids: pd.Series) -> pd.DataFrame | None:
    """The rows `ids` out of fold as 05_ensemble calibrated them, each by a temperature that was fitted without it.

    None where calibration is off, or 05_ensemble has not run on just these rows.
    """
    if not temperatures_of(paths):
        return None
    probs = read_probabilities(paths.ensemble / "probs_oof.csv").set_index("id")
    return probs.loc[ids].reset_index() if set(probs.index) == set(ids) else None


def before_and_after(paths: RunPaths, oof: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Out-of-fold probabilities `as scored` and, where calibration is on, `calibrated`: the same rows in the same order."""
    calibrated = calibrated_oof(paths, oof["id"])
    return (
        {"as scored": oof} if calibrated is None else {"as scored": oof, "calibrated": calibrated}
    )


def describe_calibration_effect(sets: dict[str, pd.DataFrame], answers: pd.Series) -> str:
    """Log loss and calibration error of each of `sets` (see `before_and_after`), in words."""
    lines = [
        f"Probabilities {name}: log loss {log_loss(probs, answers):.3f}, confidence off by "
        f"{expected_calibration_error(probs, answers):.1%} in the mean (expected calibration error)."
        for name, probs in sets.items()
    ]
    return "\n".join(
        [
            *lines,
            "Each row was calibrated by a fit that did not see it."
            if len(lines) > 1
            else "No calibration of these rows is in use.",
        ]
    )


def calibrate(
    setting: bool | Literal["auto"],
    oof: pd.DataFrame,
    answers: pd.Series,
    groups: pd.Series,
    seed: int,
) -> Calibration:
    """Fit each fold's temperature, and judge it by cross-fitting within the fold's held-out rows.

    Args:
        setting: the run's `calibrate`.
        oof: `id`, `a` to `d`, `fold`.
        answers: the right letters, by position.
        groups: one label a row, by position; rows of one group (here: of one image) are fitted or judged together.
        seed: of the parts.
    """
    temperatures, scaled_parts = {}, []
    for fold, part in oof.groupby("fold"):
        labels, of = answers[part.index], groups[part.index]
        judged = of.nunique() > 1  # what no other picture can judge stays as it is
        temperatures[int(fold)] = fit_temperature(part, labels) if judged else 1.0
        scaled_parts.append(cross_fitted(part, labels, of, seed) if judged else part)
    return Calibration(setting, temperatures, oof, pd.concat(scaled_parts).loc[oof.index], answers)


def cross_fitted(
    probs: pd.DataFrame, answers: pd.Series, groups: pd.Series, seed: int
) -> pd.DataFrame:
    """The probabilities, each row scaled by the temperature of the other parts' rows; rows of one group share a part."""
    splitter = GroupKFold(min(PARTS, groups.nunique()), shuffle=True, random_state=seed)
    parts = [
        scaled(probs.iloc[unseen], fit_temperature(probs.iloc[seen], answers.iloc[seen]))
        for seen, unseen in splitter.split(probs, groups=groups)
    ]
    return pd.concat(parts).loc[probs.index]


def fit_temperature(probs: pd.DataFrame, answers: pd.Series) -> float:
    """The temperature with the least log loss. The loss is convex in 1 / T, so what the search finds is the minimum."""
    logits, rows, right = (
        _logits(probs),
        np.arange(len(probs)),
        answers.map(LETTERS.index).to_numpy(),
    )
    found = minimize_scalar(
        lambda log_t: -log_softmax(logits / math.exp(log_t), axis=1)[rows, right].mean(),
        bounds=np.log(BOUNDS),
        method="bounded",
    )
    return math.exp(found.x)


def scaled(probs: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """Probabilities in proportion to p^(1 / T): T above 1 lowers confidence, below 1 raises it (Guo et al. 2017, section 4.2)."""
    if temperature == 1:
        return probs
    values = softmax(_logits(probs) / temperature, axis=1)
    return probs.assign(**dict(zip(LETTERS, values.T, strict=True)))


def _logits(probs: pd.DataFrame) -> np.ndarray:
    return np.log(probs[list(LETTERS)].to_numpy().clip(P_FLOOR))  # [N, 4]

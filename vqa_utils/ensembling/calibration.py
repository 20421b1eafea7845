"""Fit one temperature per fold, and decide whether to use them."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from vqa_utils.ensembling.temperature import cross_fitted, fit_temperature
from vqa_utils.metrics import accuracy, expected_calibration_error, log_loss


@dataclass(frozen=True)
class Calibration:
    """A run's temperatures, and their effect on rows outside their fit.

    All rows are matched by position.
    """

    setting: bool | Literal["auto"]
    temperatures: dict[int, float]
    """by fold, fitted on all rows that it held out"""
    before: pd.DataFrame
    """`id`, `a` to `d`, `fold`: the out-of-fold probabilities as they were scored"""
    after: pd.DataFrame
    """the same rows, each scaled by a temperature fitted without it"""
    answers: pd.Series

    @property
    def on(self) -> bool:
        """Tell whether probabilities are scaled: with "auto", if that lowers all rows' log loss."""
        if self.setting == "auto":
            return log_loss(self.after, self.answers) < log_loss(self.before, self.answers)
        return bool(self.setting)

    @property
    def oof(self) -> pd.DataFrame:
        """The out-of-fold probabilities to go on with."""
        return self.after if self.on else self.before

    @property
    def in_use(self) -> dict[int, float]:
        """The temperatures of the test probabilities, by fold; empty if calibration is off."""
        return self.temperatures if self.on else {}

    def table(self) -> pd.DataFrame:
        """Scores before and after, one line per fold and one for all.

        Returns:
            `fold`, `rows`, `temperature`, `log_loss`, `log_loss_after`, `calibration_error`,
            `calibration_error_after`.
        """
        lines = []
        for fold, temperature in self.temperatures.items():
            lines.append(self._line(fold, temperature, self.before["fold"] == fold))
        all_rows = pd.Series(True, index=self.before.index)
        lines.append(self._line("all", math.nan, all_rows))
        return pd.DataFrame(lines)

    def describe(self) -> str:
        """Say if it is on, with the reason."""
        before = log_loss(self.before, self.answers)
        after = log_loss(self.after, self.answers)
        reason = "as set"
        if self.setting == "auto":
            reason = (
                "it lowers the log loss" if after < before else "it does not lower the log loss"
            )
        return (
            f"Calibration is {'on' if self.on else 'off'} "
            f"(calibrate={str(self.setting).lower()}): {reason}; "
            f"on rows that the fit did not see, {before:.3f} becomes {after:.3f}.\n"
            "A temperature keeps the order of a row's options, "
            f"so accuracy stays {accuracy(self.oof, self.answers):.3f}."
        )

    def _line(self, fold: int | str, temperature: float, mask: pd.Series) -> dict[str, Any]:
        before, after, answers = self.before[mask], self.after[mask], self.answers[mask]
        return {
            "fold": fold,
            "rows": len(answers),
            # Fitted on all rows of the fold; the scores after it are cross-fitted
            "temperature": temperature,
            "log_loss": log_loss(before, answers),
            "log_loss_after": log_loss(after, answers),
            "calibration_error": expected_calibration_error(before, answers),
            "calibration_error_after": expected_calibration_error(after, answers),
        }


def calibrate(
    setting: bool | Literal["auto"],
    oof: pd.DataFrame,
    answers: pd.Series,
    groups: pd.Series,
    seed: int,
) -> Calibration:
    """Fit each fold's temperature, and judge it by cross-fitting within its held-out rows.

    Args:
        setting: the run's `calibrate`.
        oof: `id`, `a` to `d`, `fold`.
        answers: the right letters, by position.
        groups: one label per row, by position; rows of one group (here: of one image) are fitted or
            judged together.
        seed: of the parts.
    """
    temperatures: dict[int, float] = {}
    scaled_parts = []
    for fold in sorted(oof["fold"].unique()):
        held_out = oof[oof["fold"] == fold]
        # By label: `pooled` and `rows_of` number their rows from 0, so a label is a position
        fold_answers = answers[held_out.index]
        fold_groups = groups[held_out.index]
        if fold_groups.nunique() > 1:
            temperatures[int(fold)] = fit_temperature(held_out, fold_answers)
            scaled_parts.append(cross_fitted(held_out, fold_answers, fold_groups, seed))
        else:  # a single picture: no other could judge the fit
            temperatures[int(fold)] = 1.0
            scaled_parts.append(held_out)
    after = pd.concat(scaled_parts).loc[oof.index]  # in the order of oof: concat goes by fold
    return Calibration(setting, temperatures, oof, after, answers)

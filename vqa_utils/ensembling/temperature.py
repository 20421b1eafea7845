"""Scale probabilities by a temperature (Guo et al. 2017); read the saved ones."""

import math
import statistics
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.model_selection import GroupKFold

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.ensembling.second_look import uses_second_look
from vqa_utils.language import called, said
from vqa_utils.metrics import (
    P_FLOOR,
    at_letter,
    expected_calibration_error,
    log_loss,
    option_matrix,
    with_options,
)

BOUNDS = (0.05, 20.0)  # temperatures of the search, far around the 0.9 to 1.3 of the demo's folds
PARTS = 5  # of the rows: a temperature is fitted on four and judged on the fifth


def scaled(probs: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """Probabilities in proportion to p^(1 / T) (Guo et al. 2017, section 4.2).

    T above 1 lowers confidence, T below 1 raises it.
    """
    if temperature == 1:
        return probs  # to the last bit: no rounding, and no floor
    return with_options(probs, softmax(_logits(probs) / temperature, axis=1))


def cross_fitted(
    probs: pd.DataFrame, answers: pd.Series, groups: pd.Series, seed: int
) -> pd.DataFrame:
    """Scale each row by a temperature fitted on the other parts; a group's rows share a part."""
    splitter = GroupKFold(min(PARTS, groups.nunique()), shuffle=True, random_state=seed)
    parts = []
    for seen, unseen in splitter.split(probs, groups=groups):
        temperature = fit_temperature(probs.iloc[seen], answers.iloc[seen])
        parts.append(scaled(probs.iloc[unseen], temperature))
    return pd.concat(parts).loc[probs.index]


def fit_temperature(probs: pd.DataFrame, answers: pd.Series) -> float:
    """Fit the temperature with the least log loss.

    The loss is convex in 1 / T, so the search finds its one minimum.
    """
    logits = _logits(probs)  # [N, 4]

    def loss(log_temperature: float) -> float:
        log_probs = log_softmax(logits / math.exp(log_temperature), axis=1)
        return -at_letter(log_probs, answers).mean()

    # Over log T, where half and double are equally far from 1
    found = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded")
    return math.exp(found.x)


def temperature_of(temperatures: Mapping[int, float], number: int) -> float:
    """The temperature of one member's test probabilities.

    A member without held-out rows, such as the refit, gets the geometric mean of the others': a
    temperature scales, and a mean of scales multiplies.

    Args:
        temperatures: by fold; empty if calibration is off, and then the temperature is 1.
        number: the member's.
    """
    if not temperatures:
        return 1.0
    if number in temperatures:
        return temperatures[number]
    return statistics.geometric_mean(temperatures.values())


def read_temperatures(paths: RunPaths) -> dict[int, float]:
    """Read the temperatures in use, by member, from the files of 05_ensemble.

    Empty if calibration is off, or before 05_ensemble has run.
    """
    if not paths.members.exists():
        return {}
    written = read_json(paths.members)["temperatures"]
    # JSON keys are text
    return {int(number): temperature for number, temperature in written.items()}


def read_base_weight(paths: RunPaths) -> float:
    """Read the weight of the base beside the folds (see base_member.py), as 05_ensemble wrote it."""
    if not paths.members.exists():
        return 0.0
    return read_json(paths.members).get("base", {}).get("weight", 0.0)


def calibrated_oof(paths: RunPaths, ids: pd.Series) -> pd.DataFrame | None:
    """Read the rows `ids` out of fold, each scaled by a temperature fitted without it.

    None if calibration is off, 05_ensemble has not run on exactly these rows, or has done more with
    them: a second look, or the base's answers.
    """
    if not read_temperatures(paths) or _does_more(paths):
        return None
    return _final_oof(paths, ids)


def _does_more(paths: RunPaths) -> bool:
    """Tell whether 05_ensemble took a second look or the base's answers."""
    return read_base_weight(paths) > 0 or uses_second_look(paths)


def _final_oof(paths: RunPaths, ids: pd.Series) -> pd.DataFrame | None:
    """Read the rows `ids` out of fold as 05_ensemble left them; None if it ran on others."""
    probs = read_probabilities(paths.ensemble / "probs_oof.csv").set_index("id")
    if set(probs.index) != set(ids):
        return None
    return probs.loc[ids].reset_index()


def before_and_after(paths: RunPaths, oof: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Out-of-fold probabilities `as scored` and, if 05_ensemble changed them, as it left them.

    These are `calibrated`; or `as answered`, with a second look or the base's answers. Both sets
    have the same rows in the same order.
    """
    sets = {"as scored": oof}
    after = calibrated_oof(paths, oof["id"])
    if after is not None:
        sets["calibrated"] = after
    elif _does_more(paths):
        after = _final_oof(paths, oof["id"])
        if after is not None:
            sets["as answered"] = after
    return sets


def describe_calibration_effect(sets: dict[str, pd.DataFrame], answers: pd.Series) -> str:
    """Compare log loss and calibration error of `sets` (see `before_and_after`), in words."""
    lines = []
    for name, probs in sets.items():
        error = expected_calibration_error(probs, answers)
        line = said(
            "Probabilities {name}: log loss {loss}, confidence off by {error} on average "
            "(expected calibration error).",
            name=called(name),
            loss=f"{log_loss(probs, answers):.3f}",
            error=f"{error:.1%}",
        )
        lines.append(line)
    if "as answered" in sets:
        lines.append(said("As answered: with all that 05_ensemble has in use."))
    elif "calibrated" in sets:
        lines.append(said("Each row was calibrated by a fit that did not see it."))
    else:
        lines.append(said("No calibration of these rows is in use."))
    return "\n".join(lines)


def _logits(probs: pd.DataFrame) -> np.ndarray:
    """Log probabilities [N, 4]; softmax gives the probabilities back."""
    return np.log(option_matrix(probs).clip(P_FLOOR))

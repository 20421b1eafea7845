"""Compare a score with the base, blank images and blind answers."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vqa_utils.analysis.blind_answers import Predictions
from vqa_utils.analysis.page.results import BASELINES, FINE_TUNED
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config
from vqa_utils.data.question_kinds import question_kinds
from vqa_utils.ensembling.members import has_split, pooled, rows_of
from vqa_utils.language import called, said
from vqa_utils.metrics import (
    BEYOND_CHANCE,
    accuracy_interval,
    correct,
    expected_calibration_error,
    log_loss,
    mcnemar,
    p_text,
)


def baseline_table(
    paths: RunPaths,
    config: Config,
    folds: pd.DataFrame,
    train: pd.DataFrame,
    without_images: Mapping[str, Predictions] | None = None,
) -> pd.DataFrame:
    """Score the fine-tuned model and its baselines on the same held-out rows.

    Args:
        paths: the run's.
        config: the run's; `zero_shot` and `blank` are there if `baselines` is set.
        folds: `id` and `fold` of the train rows.
        train: the train rows.
        without_images: more baselines by name, from `blind_answers.answers_without_images`.

    Returns:
        `model`, `accuracy` with Wilson's 95 % interval from `low` to `high`, `not_yes_no` (accuracy
        without the yes/no questions), `log_loss` and `calibration_error` (NaN for a rule without
        probabilities), `mcnemar_p` (against the fine-tuned model).
    """
    tuned = pooled(paths, config, folds, "oof")
    rows = rows_of(tuned, train)
    models: dict[str, Predictions] = {FINE_TUNED: tuned}
    for split, name in BASELINES.items():
        if has_split(paths, config, split):
            models[name] = pooled(paths, config, folds, split)
    models |= without_images or {}

    tuned_right = correct(tuned, rows["answer"])
    lines = []
    for name, predicted in models.items():
        right = _right(predicted, rows["answer"])
        p = np.nan if name == FINE_TUNED else mcnemar(tuned_right, right)
        lines.append({"model": name, **_scores(predicted, right, rows), "mcnemar_p": p})
    return pd.DataFrame(lines)


def describe_baselines(table: pd.DataFrame) -> str:
    """Compare each baseline with the fine-tuned model, in words.

    A p-value that misses the level stands beside it: 0.018 alone reads as a difference.
    """
    tuned, *others = table.to_dict("records")
    first = said(
        "fine-tuned: {accuracy} right (95 % interval {low} to {high})",
        accuracy=f"{tuned['accuracy']:.3f}",
        low=f"{tuned['low']:.3f}",
        high=f"{tuned['high']:.3f}",
    )
    lines = [first]
    for other in others:
        gap = (tuned["accuracy"] - other["accuracy"]) * 100  # points
        fields = {
            "model": called(other["model"]),
            "accuracy": f"{other['accuracy']:.3f}",
            "gap": f"{gap:+.1f}",
            "p": p_text(other["mcnemar_p"]),
        }
        if other["mcnemar_p"] < BEYOND_CHANCE:
            line = said(
                "{model}: {accuracy}, {gap} points for the fine-tuned, beyond chance ({p})",
                **fields,
            )
        else:
            line = said(
                "{model}: {accuracy}, {gap} points for the fine-tuned, not beyond chance "
                "({p}; below {level} is asked for, as several are compared)",
                **fields,
                level=BEYOND_CHANCE,
            )
        lines.append(line)
    return "\n".join(lines)


def _right(predicted: Predictions, answers: pd.Series) -> np.ndarray:
    """Tell whether each row is answered right, bool [N]."""
    if isinstance(predicted, pd.Series):  # a rule's letters
        return predicted.to_numpy() == answers.to_numpy()
    return correct(predicted, answers)


def _scores(predicted: Predictions, right: np.ndarray, rows: pd.DataFrame) -> dict[str, float]:
    """The scores of one line of `baseline_table`."""
    low, high = accuracy_interval(right)
    is_open = (question_kinds(rows) != "yes/no").to_numpy()
    scores = {
        "accuracy": right.mean(),
        "low": low,
        "high": high,
        "not_yes_no": right[is_open].mean() if is_open.any() else np.nan,
        "log_loss": np.nan,
        "calibration_error": np.nan,
    }
    if isinstance(predicted, pd.DataFrame):
        scores["log_loss"] = log_loss(predicted, rows["answer"])
        scores["calibration_error"] = expected_calibration_error(predicted, rows["answer"])
    return scores

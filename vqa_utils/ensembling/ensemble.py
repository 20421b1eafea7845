"""Hold what 05_ensemble shows and writes: members, a fit on them, one answer per row."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vqa_utils.artifacts.files import write_csv, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.metrics import expected_calibration_error, tied


@dataclass(frozen=True)
class Fit:
    """Temperatures or weights, fitted on out-of-fold rows and judged on rows outside the fit."""

    table: pd.DataFrame
    """the fitted numbers with their scores"""
    decision: str
    """if they are used, with the reason, in words"""
    compared: dict[str, pd.DataFrame]
    """out-of-fold probabilities without and with them, the same rows in the same order"""
    answers: pd.Series
    """the right letters of those rows"""

    def describe_calibration(self) -> str:
        """Compare the distance between confidence and accuracy without and with them, in words."""
        errors = []
        for name, probs in self.compared.items():
            errors.append(f"{expected_calibration_error(probs, self.answers):.1%} ({name})")
        return f"Expected calibration error, on rows that the fit did not see: {', '.join(errors)}."


@dataclass(frozen=True)
class Outcome:
    """The combined probabilities and the submission, as 05_ensemble writes them."""

    oof: pd.DataFrame
    """`id`, `a` to `d`"""
    test: pd.DataFrame
    """`id`, `a` to `d`"""
    submission: pd.DataFrame
    """`id`, `answer`, in the order of sample_submission.csv"""
    submission_path: Path
    record: dict[str, Any]
    """members.json: the members, with the temperatures or weights in use"""

    def describe_ties(self) -> str:
        """Count the answers that a tie between letters left open, in words."""
        ties = int(tied(self.test).sum())
        return f"Rows with a tie, which the first letter gets: {ties} of {len(self.test)}."

    def write(self, paths: RunPaths) -> list[Path]:
        """Write `ensemble/` and the submission, and return their paths."""
        write_probabilities(paths.ensemble / "probs_test.csv", self.test)
        write_probabilities(paths.ensemble / "probs_oof.csv", self.oof)
        write_json(paths.members, self.record)
        write_csv(self.submission_path, self.submission)
        return [paths.ensemble, self.submission_path]


@dataclass(frozen=True)
class Ensemble:
    """Members, folds or runs, and their combination."""

    who: str
    """the members, in words"""
    scores: pd.DataFrame
    """out of fold, one line per member and a last one for the whole: `rows`, `accuracy`, `log_loss`
    among others"""
    whole: str
    """what the last line of `scores` is about, in words"""
    members: dict[str, pd.DataFrame]
    """test probabilities by the member's name, as it scored them"""
    fit: Fit
    outcome: Outcome

    def describe_scores(self) -> str:
        """Give the scores of the whole, in words."""
        scores = self.scores.iloc[-1]
        return (
            f"Out of fold, {self.whole}: accuracy {scores['accuracy']:.3f}, "
            f"log loss {scores['log_loss']:.3f} over {scores['rows']} rows."
        )

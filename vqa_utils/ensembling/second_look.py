"""Take a run's second look at uncertain rows, if it lowers the log loss out of fold."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.artifacts.probabilities import SECOND_LOOK, read_probabilities
from vqa_utils.config import Config
from vqa_utils.ensembling.members import Member, has_split, scored_folds
from vqa_utils.metrics import log_loss
from vqa_utils.prompts import LETTERS


@dataclass(frozen=True)
class SecondLook:
    """The out-of-fold rows without and with the second look at some of them."""

    rows: int
    """that were looked at twice"""
    before: pd.DataFrame
    """`id`, `a` to `d`, `fold`"""
    after: pd.DataFrame
    """the same rows in the same order"""
    answers: pd.Series

    @property
    def is_used(self) -> bool:
        """Tell whether it lowers the log loss of all rows; nothing of it is fitted on them."""
        return log_loss(self.after, self.answers) < log_loss(self.before, self.answers)

    def describe(self) -> str:
        """Compare the log losses, in words."""
        losses = [log_loss(probs, self.answers) for probs in (self.before, self.after)]
        verdict = "so it is used" if self.is_used else "so it is not used"
        return (
            f"Second look at the {self.rows} least certain out-of-fold rows, the mean of both: log "
            f"loss {losses[1]:.4f} against {losses[0]:.4f} of all rows, {verdict}."
        )

    def record(self) -> dict[str, Any]:
        """Return what members.json has of it."""
        return {"rows": self.rows, "is_used": self.is_used}


def second_look(
    paths: RunPaths, config: Config, oof: pd.DataFrame, answers: pd.Series
) -> SecondLook | None:
    """Judge a run's second look; None without `second_look`, or before it is scored.

    Args:
        paths: the run's.
        config: the run's.
        oof: `id`, `a` to `d`, `fold`: the held-out rows of all scored folds.
        answers: the right letters of `oof`, by position.
    """
    if not config.second_look or not has_split(paths, config, f"oof_{SECOND_LOOK}"):
        return None
    scored, _ = scored_folds(paths, config)
    looks = [_look(paths.fold(number), "oof") for number in scored]
    again = pd.concat(looks, ignore_index=True)
    return SecondLook(len(again), oof, _with_look(oof, again), answers)


def members_with_look(members: list[Member], out: RunPaths) -> list[Member]:
    """Take the second look at the test rows of each member.

    Args:
        members: of a run.
        out: the run's folder, or a prediction's.
    """
    looked = []
    for member in members:
        again = _look(out.fold(member.number), "test")
        looked.append(Member(member.number, member.name, _with_look(member.test, again)))
    return looked


def uses_second_look(paths: RunPaths) -> bool:
    """Tell whether 05_ensemble has used a run's second look."""
    if not paths.members.exists():
        return False
    return bool(read_json(paths.members).get("second_look", {}).get("is_used"))


def _look(fold: FoldPaths, split: str) -> pd.DataFrame:
    return read_probabilities(fold.probs(f"{split}_{SECOND_LOOK}"))


def _with_look(probs: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Take the mean of both looks at the rows that were looked at again."""
    letters = list(LETTERS)
    looked = probs.set_index("id")
    both = looked.loc[again["id"], letters] + again.set_index("id")[letters]
    looked.loc[again["id"], letters] = both / 2
    return looked.reset_index()

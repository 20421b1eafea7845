"""Mix a run's folds with its base, without an adapter, where that helps rows outside the fit."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import BASE_TEST, read_probabilities
from vqa_utils.config import Config
from vqa_utils.ensembling._weights import Mixture, fit_mixture, mixed
from vqa_utils.ensembling.members import has_split, pooled, scored_folds
from vqa_utils.ensembling.temperature import read_base_weight

FOLDS, BASE = "folds", "base"  # the members of the mixture
NO_BASE = (1.0, 0.0)  # their weights, unless the fitted ones are better
NO_ANSWERS = "The base is no member: its answers to the test rows come with the first fold's."


@dataclass(frozen=True)
class BaseMember:
    """The base as a member beside the folds."""

    mixture: Mixture
    test: pd.DataFrame
    """`id`, `a` to `d`: its own answers to the test rows"""

    def describe(self) -> str:
        """Say what weight the base has, with the reason."""
        fitted = self.mixture.fitted.iloc[-1]
        return f"The base beside the folds, weight {fitted[BASE]:.3f}. {self.mixture.describe()}"

    def mix(self, folds: pd.DataFrame) -> pd.DataFrame:
        """Mix the folds' test probabilities with the base's."""
        return mixed([folds, self.test], [self.mixture.weights[FOLDS], self.mixture.weights[BASE]])

    def record(self) -> dict[str, Any]:
        """Return what members.json has of it."""
        return {"weight": self.mixture.weights[BASE], "p": self.mixture.p}


def base_member(
    paths: RunPaths,
    config: Config,
    folds: pd.DataFrame,
    oof: pd.DataFrame,
    answers: pd.Series,
    groups: pd.Series,
    test_ids: pd.Series,
) -> BaseMember | None:
    """Fit the base's weight out of fold; None without `base_member`, or before its rows are scored.

    Args:
        paths: the run's.
        config: the run's.
        folds: `id` and `fold` of the train rows.
        oof: the folds' probabilities of the held-out rows, as they go on.
        answers: the right letters of `oof`, by position.
        groups: their groups, by position.
        test_ids: of test.csv.
    """
    if not config.base_member:
        return None
    scored, _ = scored_folds(paths, config)
    answered = paths.fold(config.base_fold).probs(BASE_TEST)
    if config.base_fold not in scored or not answered.exists():
        return None
    if not has_split(paths, config, "zero_shot"):
        return None
    zero_shot = pooled(paths, config, folds, "zero_shot")
    members = {FOLDS: oof, BASE: zero_shot}
    mixture = fit_mixture(
        members, answers, groups, config.seed, otherwise=NO_BASE, called="the folds' answer"
    )
    return BaseMember(mixture, read_probabilities(answered, test_ids))


def with_base(paths: RunPaths, config: Config, out: RunPaths, probs: pd.DataFrame) -> pd.DataFrame:
    """Mix answers to another test set with the base's, by the weight that 05_ensemble wrote.

    Args:
        paths: the run's.
        config: the run's.
        out: the prediction's.
        probs: the adapters', combined.
    """
    weight = read_base_weight(paths)
    if not config.base_member or not weight:
        return probs
    file = out.fold(config.base_fold).probs(BASE_TEST)
    return mixed([probs, read_probabilities(file, probs["id"])], [1 - weight, weight])

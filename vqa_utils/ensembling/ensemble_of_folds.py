"""Combine the folds of one run: calibrate, then average or as `ensemble` says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import Config
from vqa_utils.data.challenge import Challenge, load_challenge
from vqa_utils.data.folds import read_folds
from vqa_utils.ensembling.base_member import BASE, NO_ANSWERS, BaseMember, base_member
from vqa_utils.ensembling.calibration import Calibration, calibrate
from vqa_utils.ensembling.combining import combine_members, submission
from vqa_utils.ensembling.ensemble import Ensemble, Fit, Outcome
from vqa_utils.ensembling.fold_table import fold_table
from vqa_utils.ensembling.members import (
    Member,
    describe_refit,
    pooled,
    read_members,
    rows_of,
    scored_folds,
)
from vqa_utils.ensembling.second_look import SecondLook, members_with_look, second_look
from vqa_utils.ensembling.temperature import temperature_of


@dataclass(frozen=True)
class _Opinions:
    """What a run's adapters, and its base, say of its rows."""

    look: SecondLook | None
    calibration: Calibration
    """of the held-out rows, after the second look if it is used"""
    members: list[Member]
    """the adapters, likewise"""
    base: BaseMember | None

    @property
    def oof(self) -> pd.DataFrame:
        """The final out-of-fold probabilities."""
        return self.base.mixture.oof if self.base else self.calibration.oof

    def test(self, how: str) -> pd.DataFrame:
        """The final test probabilities; the adapters' are combined as `how` says."""
        combined = combine_members(self.members, self.calibration.in_use, how)
        return self.base.mix(combined) if self.base else combined

    @property
    def by_name(self) -> dict[str, pd.DataFrame]:
        """Each member's own test probabilities."""
        of_base = {BASE: self.base.test} if self.base else {}
        return {member.name: member.test for member in self.members} | of_base

    @property
    def compared(self) -> dict[str, pd.DataFrame]:
        """The out-of-fold probabilities from step to step."""
        with_base = {"with the base": self.oof} if self.base else {}
        before, after = self.calibration.before, self.calibration.after
        return {"as scored": before, "calibrated": after} | with_base

    def decisions(self, *, base_is_asked: bool) -> list[str]:
        """Say what is used, with the reasons."""
        lines = [self.look.describe()] if self.look else []
        lines += [
            self.calibration.describe(),
            _describe_temperatures(self.calibration, self.members),
        ]
        if base_is_asked:
            lines.append(self.base.describe() if self.base else NO_ANSWERS)
        return lines


def of_folds(run_id: str) -> Ensemble:
    """Calibrate a run's folds on the rows that each held out, and combine them.

    A refit is one more member for the test rows (see `temperature_of` for its temperature); the
    base, with `base_member`, one beside all of them. A second look comes before all of it.
    """
    paths, config = open_run(run_id)
    challenge = load_challenge(config)
    folds = read_folds(paths.folds, challenge.train)
    opinions = _opinions(paths, config, challenge, folds)
    test = opinions.test(config.ensemble)
    return Ensemble(
        who=_describe_folds(paths, config),
        scores=fold_table(paths, config, folds, challenge.train),
        whole="the folds, as scored",
        members=opinions.by_name,
        fit=Fit(
            table=opinions.calibration.table(),
            decision="\n".join(opinions.decisions(base_is_asked=config.base_member)),
            compared=opinions.compared,
            answers=opinions.calibration.answers,
        ),
        outcome=Outcome(
            oof=opinions.oof,
            test=test,
            submission=submission(challenge.sample_submission, test),
            submission_path=paths.submission(config.use_kfold),
            record=_record_of_folds(paths, config, opinions),
        ),
    )


def _opinions(
    paths: RunPaths, config: Config, challenge: Challenge, folds: pd.DataFrame
) -> _Opinions:
    """Take the second look, fit the temperatures, then the base's weight, where each is asked for."""
    oof = pooled(paths, config, folds, "oof")
    answers = rows_of(oof, challenge.train)["answer"]
    groups = rows_of(oof, folds)["group"]
    members = read_members(paths, config, challenge.test["id"])
    look = second_look(paths, config, oof, answers)
    if look is not None and look.is_used:
        oof = look.after
        members = members_with_look(members, paths)
    calibration = calibrate(config.calibrate, oof, answers, groups, config.seed)
    base = base_member(paths, config, folds, calibration.oof, answers, groups, challenge.test["id"])
    return _Opinions(look, calibration, members, base)


def _describe_folds(paths: RunPaths, config: Config) -> str:
    scored, missing = scored_folds(paths, config)
    return (
        f"folds scored: {scored}, missing: {missing or 'none'}; combined by: {config.ensemble}\n"
        f"{describe_refit(paths, config)}"
    )


def _describe_temperatures(calibration: Calibration, members: Sequence[Member]) -> str:
    used = []
    for member in members:
        temperature = temperature_of(calibration.in_use, member.number)
        used.append(f"{member.name} {temperature:.3f}")
    return f"Temperatures of the test probabilities: {', '.join(used)}."


def _record_of_folds(paths: RunPaths, config: Config, opinions: _Opinions) -> dict[str, Any]:
    """The content of members.json; the temperatures are those that `read_temperatures` reads."""
    calibration = opinions.calibration
    temperatures = {}
    if calibration.on:
        for member in opinions.members:
            temperatures[member.number] = temperature_of(calibration.in_use, member.number)
    record = {
        "members": [member.name for member in opinions.members],
        "folds": scored_folds(paths, config)[0],
        "ensemble": config.ensemble,
        "calibrated": calibration.on,
        "temperatures": temperatures,
    }
    if opinions.look:
        record["second_look"] = opinions.look.record()
    if opinions.base:
        record["base"] = opinions.base.record()
    return record

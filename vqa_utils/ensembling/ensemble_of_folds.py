"""Combine the folds of one run: calibrate, then average or as `ensemble` says."""

from collections.abc import Sequence
from typing import Any

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import read_folds
from vqa_utils.ensembling.base_member import BASE, NO_ANSWERS, base_member
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
from vqa_utils.ensembling.second_look import members_with_look, second_look
from vqa_utils.ensembling.temperature import temperature_of


def of_folds(run_id: str) -> Ensemble:
    """Calibrate a run's folds on the rows that each held out, and combine them.

    A refit is one more member for the test rows (see `temperature_of` for its temperature); the
    base, with `base_member`, one beside all of them.
    """
    paths, config = open_run(run_id)
    challenge = load_challenge(config)
    folds = read_folds(paths.folds, challenge.train)
    oof = pooled(paths, config, folds, "oof")
    answers = rows_of(oof, challenge.train)["answer"]
    look = second_look(paths, config, oof, answers)
    if look is not None and look.is_used:
        oof = look.after
    groups = rows_of(oof, folds)["group"]
    calibration = calibrate(config.calibrate, oof, answers, groups, config.seed)
    members = read_members(paths, config, challenge.test["id"])
    if look is not None and look.is_used:
        members = members_with_look(members, paths)
    test = combine_members(members, calibration.in_use, config.ensemble)
    test_members = {member.name: member.test for member in members}
    compared = {"as scored": calibration.before, "calibrated": calibration.after}
    decisions = [calibration.describe(), _describe_temperatures(calibration, members)]
    if look is not None:
        decisions.insert(0, look.describe())
    final_oof = calibration.oof
    record = _record_of_folds(paths, config, calibration, members)
    if look is not None:
        record["second_look"] = look.record()
    base = base_member(paths, config, folds, calibration.oof, answers, groups, challenge.test["id"])
    if base is not None:
        test = base.mix(test)
        test_members[BASE] = base.test
        compared["with the base"] = final_oof = base.mixture.oof
        decisions.append(base.describe())
        record["base"] = base.record()
    elif config.base_member:
        decisions.append(NO_ANSWERS)
    return Ensemble(
        who=_describe_folds(paths, config),
        scores=fold_table(paths, config, folds, challenge.train),
        whole="the folds, as scored",
        members=test_members,
        fit=Fit(
            table=calibration.table(),
            decision="\n".join(decisions),
            compared=compared,
            answers=answers,
        ),
        outcome=Outcome(
            oof=final_oof,
            test=test,
            submission=submission(challenge.sample_submission, test),
            submission_path=paths.submission(config.use_kfold),
            record=record,
        ),
    )


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


def _record_of_folds(
    paths: RunPaths, config: Config, calibration: Calibration, members: Sequence[Member]
) -> dict[str, Any]:
    """The content of members.json; the temperatures are those that `read_temperatures` reads."""
    temperatures = {}
    if calibration.on:
        for member in members:
            temperatures[member.number] = temperature_of(calibration.in_use, member.number)
    return {
        "members": [member.name for member in members],
        "folds": scored_folds(paths, config)[0],
        "ensemble": config.ensemble,
        "calibrated": calibration.on,
        "temperatures": temperatures,
    }

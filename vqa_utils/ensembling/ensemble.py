"""What 05_ensemble shows: members, how they were combined into one answer a row, and what that gave."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from vqa_utils.artifacts.files import write_csv, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import read_folds
from vqa_utils.ensembling._weights import fit_mixture, mixed
from vqa_utils.ensembling.combining import combine_members, submission
from vqa_utils.ensembling.fold_table import fold_table
from vqa_utils.ensembling.members import describe_refit, pooled, read_members, rows_of, scored_folds
from vqa_utils.ensembling.other_runs import read_runs
from vqa_utils.ensembling.temperature import calibrate
from vqa_utils.metrics import (
    accuracy,
    correct,
    expected_calibration_error,
    log_loss,
    mcnemar,
    predictions,
    tied,
)


@dataclass(frozen=True)
class Ensemble:
    """Members combined. Probabilities are `id`, `a` to `d`; scores are out of fold."""

    who: str
    """which members, in words"""
    scores: pd.DataFrame
    """a line a member and one for the whole: accuracy and log loss among others"""
    members: dict[str, pd.DataFrame]
    """test probabilities by the member's name"""
    fitted: pd.DataFrame
    """what was fitted: temperatures, or weights"""
    decision: str
    """whether it is used, and why, in words"""
    compared: dict[str, pd.DataFrame]
    """out-of-fold probabilities without and with it, the same rows in the same order"""
    answers: pd.Series
    """the right letters of those rows"""
    oof: pd.DataFrame
    test: pd.DataFrame
    submission: pd.DataFrame
    """`id`, `answer`"""
    submission_path: Path
    record: dict[str, Any]

    def describe_scores(self) -> str:
        """The scores of the whole, in words."""
        whole = self.scores.iloc[-1]
        of = (
            "the folds, as scored"
            if whole.iloc[0] == "all"
            else "the blend of the runs' final probabilities"
        )
        return f"Out of fold, {of}: accuracy {whole['accuracy']:.3f}, log loss {whole['log_loss']:.3f} over {whole['rows']} rows."

    def describe_calibration(self) -> str:
        """How far confidence is off, without and with what was fitted, in words."""
        errors = {
            name: expected_calibration_error(probs, self.answers)
            for name, probs in self.compared.items()
        }
        said = ", ".join(f"{error:.1%} ({name})" for name, error in errors.items())
        return f"Expected calibration error, on rows that the fit did not see: {said}."

    def describe_ties(self) -> str:
        """How many answers a tie between letters left open, in words."""
        return f"Rows with a tie, which the first letter gets: {int(tied(self.test).sum())} of {len(self.test)}."

    def write(self, paths: RunPaths) -> list[Path]:
        """Write `ensemble/` and the submission."""
        write_probabilities(paths.ensemble / "probs_test.csv", self.test)
        write_probabilities(paths.ensemble / "probs_oof.csv", self.oof)
        write_json(paths.members, self.record)
        write_csv(self.submission_path, self.submission)
        return [paths.ensemble, self.submission_path]


def of_folds(run_id: str) -> Ensemble:
    """The folds of a run, each calibrated on the rows that it held out, and combined as the run's `ensemble` says.

    A refit is one more member for the test rows. It held out none, so that its temperature is the geometric mean of the folds'.
    """
    paths, config = open_run(run_id)
    challenge = load_challenge(config)
    folds = read_folds(paths.folds, challenge.train)
    there, missing = scored_folds(paths, config)
    oof = pooled(paths, config, folds, "oof")
    answers, groups = (
        rows_of(oof, challenge.train)["answer"],
        folds.set_index("id")["group"].loc[oof["id"]].reset_index(drop=True),
    )
    calibration = calibrate(config.calibrate, oof, answers, groups, config.seed)
    scored = read_members(paths, config, challenge.test["id"])
    combination = combine_members(scored, calibration.in_use, config.ensemble)
    temperatures, members, test = combination
    used = [f"{member.name} {temperatures[member.number]:.2f}" for member in scored]
    return Ensemble(
        who=f"folds scored: {there}, missing: {missing or 'none'}; combined by: {config.ensemble}\n{describe_refit(paths, config)}",
        scores=fold_table(paths, config, folds, challenge.train),
        members=members,
        fitted=calibration.table(),
        decision=f"{calibration.describe()}\nTemperatures of the test probabilities: {', '.join(used)}.",
        compared={"as scored": calibration.before, "calibrated": calibration.after},
        answers=answers,
        oof=calibration.oof,
        test=test,
        submission=submission(challenge.sample_submission, test),
        submission_path=paths.submission(config.use_kfold),
        record={"members": list(members), "folds": there, "ensemble": config.ensemble, "calibrated": calibration.on,
                "temperatures": temperatures if calibration.on else {}},
    )  # fmt: skip


def of_runs(run_id: str, members: str) -> Ensemble:
    """Runs mixed with weights that were fitted on their out-of-fold rows, or equal ones (see `mixture.fit_mixture`).

    Args:
        run_id: the blend's own folder.
        members: the runs, separated by commas.
    """
    runs = read_runs(members.split(","))
    challenge = load_challenge(runs.config)
    answers = rows_of(runs.groups, challenge.train)["answer"]
    mixture = fit_mixture(runs.oof, answers, runs.groups["group"], runs.config.seed)
    test = mixed(list(runs.test.values()), list(mixture.weights.values()))
    scores = score_table({**runs.oof, "blend": mixture.oof}, answers)
    best = (
        scores.iloc[:-1]
        .sort_values(["accuracy", "log_loss"], ascending=[False, True])["member"]
        .iloc[0]
    )
    p_best = mcnemar(correct(mixture.oof, answers), correct(runs.oof[best], answers))
    refitted = [name for name in runs.oof if open_run(name)[1].refit]
    return Ensemble(
        who=f"runs: {', '.join(runs.oof)}; with a refit for the test rows, which no score judges: {', '.join(refitted) or 'none'}",
        scores=scores,
        members=runs.test,
        fitted=mixture.fitted,
        decision=f"{mixture.describe()}\n{describe_disagreement(runs.oof)}\n{describe_gain(scores, best, p_best)}",
        compared={f"best member, {best}": runs.oof[best], "blend": mixture.oof},
        answers=answers,
        oof=mixture.oof,
        test=test,
        submission=submission(challenge.sample_submission, test),
        submission_path=RunPaths(run_id).submission(use_kfold=True),
        record={"runs": list(runs.oof), "weights": mixture.weights, "weights_are_fitted": mixture.uses_fit, "p": mixture.p,
                "best_member": best, "mcnemar_p": p_best, "decision": mixture.describe()},
    )  # fmt: skip


def score_table(members: Mapping[str, pd.DataFrame], answers: pd.Series) -> pd.DataFrame:
    """A line a member, on the same rows: `member`, `rows`, `accuracy`, `log_loss`."""
    return pd.DataFrame(
        [
            (name, len(probs), accuracy(probs, answers), log_loss(probs, answers))
            for name, probs in members.items()
        ],
        columns=["member", "rows", "accuracy", "log_loss"],
    )


def describe_disagreement(members: Mapping[str, pd.DataFrame]) -> str:
    """On how many out-of-fold rows each two members choose different letters, in words."""
    letters = {name: predictions(probs).to_numpy() for name, probs in members.items()}
    shares = [
        f"{a} and {b} {(letters[a] != letters[b]).mean():.1%}" for a, b in combinations(letters, 2)
    ]
    return f"Rows with different letters: {', '.join(shares)}; public entries report gains from members that differ on 8 % or more."


def describe_gain(scores: pd.DataFrame, best: str, p: float) -> str:
    """The blend against the best member, in words."""
    of = scores.set_index("member")
    numbers = ", ".join(
        f"{name} {of.loc['blend', name]:.4f} against {of.loc[best, name]:.4f}"
        for name in ("accuracy", "log_loss")
    )
    return f"The blend against its best member, {best}: {numbers} (McNemar p = {p:.2g})."

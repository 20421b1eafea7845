"""Mix finished runs by fitted weights; compare with the best one."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.challenge import load_challenge
from vqa_utils.ensembling._weights import Mixture, fit_mixture, mixed
from vqa_utils.ensembling.combining import submission
from vqa_utils.ensembling.ensemble import Ensemble, Fit, Outcome
from vqa_utils.ensembling.members import rows_of
from vqa_utils.ensembling.other_runs import read_runs
from vqa_utils.metrics import accuracy, correct, log_loss, mcnemar, p_text, predictions


def of_runs(run_id: str, members: str) -> Ensemble:
    """Mix runs by weights fitted on their out-of-fold rows, or by equal ones (see `fit_mixture`).

    Args:
        run_id: the blend's own folder.
        members: the runs, separated by commas.
    """
    runs = read_runs(members.split(","))
    challenge = load_challenge(runs.config)
    answers = rows_of(runs.groups, challenge.train)["answer"]
    mixture = fit_mixture(runs.oof, answers, runs.groups["group"], runs.config.seed)
    # Both dicts are in the order of the runs as given: `mixed` pairs them by position
    test = mixed(list(runs.test.values()), list(mixture.weights.values()))
    scores = score_table({**runs.oof, "blend": mixture.oof}, answers)
    best = _best_member(scores)
    # The best member is chosen on these same rows, so the comparison favours it a little
    p_best = mcnemar(correct(mixture.oof, answers), correct(runs.oof[best], answers))
    gain = describe_gain(scores, best, p_best)
    return Ensemble(
        who=_describe_runs(list(runs.oof)),
        scores=scores,
        whole="the blend of the runs' final probabilities",
        members=runs.test,
        fit=Fit(
            table=mixture.fitted,
            decision=f"{mixture.describe()}\n{describe_disagreement(runs.oof)}\n{gain}",
            compared={f"best member, {best}": runs.oof[best], "blend": mixture.oof},
            answers=answers,
        ),
        outcome=Outcome(
            oof=mixture.oof,
            test=test,
            submission=submission(challenge.sample_submission, test),
            submission_path=RunPaths(run_id).submission(use_kfold=True),
            record=_record_of_runs(mixture, best, p_best),
        ),
    )


def _record_of_runs(mixture: Mixture, best: str, p_best: float) -> dict[str, Any]:
    """The content of members.json."""
    return {
        "runs": list(mixture.weights),
        "weights": mixture.weights,
        "weights_are_fitted": mixture.uses_fit,
        "p": mixture.p,
        "best_member": best,
        "mcnemar_p": p_best,
        "decision": mixture.describe(),
    }


def score_table(members: Mapping[str, pd.DataFrame], answers: pd.Series) -> pd.DataFrame:
    """Score members on the same rows: `member`, `rows`, `accuracy`, `log_loss`."""
    lines = []
    for name, probs in members.items():
        lines.append({
            "member": name,
            "rows": len(probs),
            "accuracy": accuracy(probs, answers),
            "log_loss": log_loss(probs, answers),
        })  # fmt: skip
    return pd.DataFrame(lines)


def describe_disagreement(members: Mapping[str, pd.DataFrame]) -> str:
    """Give the share of out-of-fold rows with different letters, for each two members."""
    letters = {name: predictions(probs).to_numpy() for name, probs in members.items()}
    shares = []
    for first, second in combinations(letters, 2):
        share = (letters[first] != letters[second]).mean()
        shares.append(f"{first} and {second} {share:.1%}")
    return (
        f"Rows with different letters: {', '.join(shares)}; "
        "public entries report gains from members that differ on 8 % or more."
    )


def describe_gain(scores: pd.DataFrame, best: str, p: float) -> str:
    """Compare the blend with its best member, in words.

    Args:
        scores: from `score_table`, the blend in its last line.
        best: the best member's name.
        p: McNemar's, of the two.
    """
    of_blend = scores.iloc[-1]
    of_best = scores[scores["member"] == best].iloc[0]
    return (
        f"The blend against its best member, {best}: "
        f"accuracy {of_blend['accuracy']:.3f} against {of_best['accuracy']:.3f}, "
        f"log loss {of_blend['log_loss']:.3f} against {of_best['log_loss']:.3f} "
        f"(McNemar {p_text(p)})."
    )


def _describe_runs(run_ids: Sequence[str]) -> str:
    refitted = [run_id for run_id in run_ids if open_run(run_id)[1].refit]
    return (
        f"runs: {', '.join(run_ids)}; with a refit for the test rows, "
        f"which no score judges: {', '.join(refitted) or 'none'}"
    )


def _best_member(scores: pd.DataFrame) -> str:
    """The most accurate member; of several, the one with the least log loss."""
    members = scores.iloc[:-1]  # without the blend
    by_score = members.sort_values(["accuracy", "log_loss"], ascending=[False, True])
    return by_score["member"].iloc[0]

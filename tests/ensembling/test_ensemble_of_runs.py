"""Several runs mixed, and blended by the executed notebook."""

import nbformat
import pandas as pd
import pytest
from finished_run import LETTERS

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.ensembling.ensemble_of_runs import (
    describe_disagreement,
    describe_gain,
    of_runs,
    score_table,
)
from vqa_utils.ensembling.other_runs import read_runs
from vqa_utils.errors import RunError
from vqa_utils.experiments.blends import blend_runs


def weighted_sum(members, weights):
    return sum(members[name][LETTERS] * weight for name, weight in weights.items())


def test_a_run_with_a_refit_is_named(write_run):
    write_run("folds")
    write_run("all", seed=1, refit=True)
    write_run("other", seed=2)
    assert of_runs("blend", "folds,all").who.endswith(": all")
    assert of_runs("blend", "folds,other").who.endswith(": none")


def test_a_good_run_outweighs_a_useless_one(write_run):
    write_run("good", sure=6.0)
    write_run("useless", sure=0.0, seed=1)
    blend = of_runs("blend", "good,useless")
    record = blend.outcome.record
    assert record["weights_are_fitted"] and record["p"] < 0.05 and record["weights"]["good"] > 0.9
    expected = weighted_sum(blend.members, record["weights"])
    pd.testing.assert_frame_equal(blend.outcome.test[LETTERS], expected)
    assert list(blend.scores["member"]) == ["good", "useless", "blend"]
    assert record["best_member"] == "good"
    assert list(blend.fit.compared) == ["best member, good", "blend"]
    pd.testing.assert_frame_equal(blend.fit.compared["blend"], blend.outcome.oof)


def test_the_decision_gives_the_share_of_different_letters(write_run):
    write_run("good", sure=6.0)
    write_run("useless", sure=0.0, seed=1)
    oof = read_runs(["good", "useless"]).oof
    letters = [frame[LETTERS].idxmax(axis=1) for frame in oof.values()]
    share = (letters[0] != letters[1]).mean()
    assert f"good and useless {share:.1%}" in describe_disagreement(oof)
    assert describe_disagreement(oof) in of_runs("blend", "good,useless").fit.decision


def test_of_equally_accurate_members_the_one_with_less_log_loss_is_best(write_run):
    write_run("good", sure=6.0)
    sharper = write_run("sharper", sure=6.0).ensemble / "probs_oof.csv"
    probs = read_probabilities(sharper)
    squared = probs[LETTERS] ** 2
    probs[LETTERS] = squared.div(squared.sum(axis=1), axis=0)
    probs.to_csv(sharper, index=False)
    blend = of_runs("blend", "good,sharper")
    scores = blend.scores.set_index("member")
    assert scores.loc["good", "accuracy"] == scores.loc["sharper", "accuracy"]
    less = scores.loc[["good", "sharper"], "log_loss"].idxmin()
    assert blend.outcome.record["best_member"] == less


def test_the_gain_is_that_of_the_last_line_over_the_best(write_run):
    write_run("one", sure=2.0)
    write_run("two", sure=2.0, seed=1)
    oof = read_runs(["one", "two"]).oof
    answers = write_run.train["answer"]
    scores = score_table({**oof, "blend": oof["two"]}, answers)
    assert scores["rows"].tolist() == [24, 24, 24]
    said = describe_gain(scores, "one", 0.25)
    for name in ("accuracy", "log_loss"):
        blend, best = scores[name].iloc[2], scores[name].iloc[0]
        assert f"{name.replace('_', ' ')} {blend:.3f} against {best:.3f}" in said
    assert "0.25" in said


@pytest.mark.slow
def test_the_command_blends_into_a_folder_of_its_own(write_run, console):
    write_run("one", sure=2.0)
    write_run("two", sure=2.0, seed=1)
    blend_runs(["one", "two"], "both", console)
    paths = RunPaths("both")
    files = {path for path in paths.folder.rglob("*") if path.is_file()}
    assert {str(file.relative_to(paths.folder)) for file in files} == {
        "notebooks/05_ensemble.ipynb",
        "ensemble/probs_oof.csv",
        "ensemble/probs_test.csv",
        "ensemble/members.json",
        "submission_ensemble.csv",
    }
    record = read_json(paths.members)
    assert record["runs"] == ["one", "two"]
    assert record["decision"] in console.file.getvalue()
    members = {}
    for name in ("one", "two"):
        members[name] = read_probabilities(RunPaths(name).ensemble / "probs_test.csv")
    letters = weighted_sum(members, record["weights"]).idxmax(axis=1)
    assert list(pd.read_csv(paths.submission(True))["answer"]) == list(letters)
    archived = nbformat.read(paths.notebooks / "05_ensemble.ipynb", 4)
    assert archived.metadata["papermill"]["parameters"] == {"run_id": "both", "members": "one,two"}


def test_the_command_takes_neither_a_folder_that_is_there_nor_a_path(write_run, console):
    write_run("one")
    write_run("two", seed=1)
    with pytest.raises(RunError, match="runs/one "):
        blend_runs(["one", "two"], "one", console)
    with pytest.raises(RunError, match="--run-id"):
        blend_runs(["one", "two"], "../both", console)

"""A refit as a member of the ensemble: it joins the test answers, and no out-of-fold score."""

import dataclasses
import statistics

import numpy as np
import pandas as pd
import pytest

from vqa_utils.artifacts.files import ids_hash, write_csv, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities, write_probabilities
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import to_dict
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import FoldError, held_out_rows, read_folds
from vqa_utils.ensembling.combining import combined
from vqa_utils.ensembling.ensemble import of_folds
from vqa_utils.ensembling.members import pooled, scored_folds
from vqa_utils.ensembling.temperature import scaled, temperature_of, temperatures_of
from vqa_utils.presets import preset

LETTERS = list("abcd")


@pytest.fixture
def scored_run(tmp_path, monkeypatch, korean_folder):
    """Writes the probabilities of two folds and a refit, those of the folds sharper than they should be."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))

    def write(run_id, **changes):
        paths, config = (
            RunPaths(run_id),
            preset("demo", **{"data": str(korean_folder), "n_folds": 2, **changes}),
        )
        challenge, rng = load_challenge(config), np.random.default_rng(0)
        number = np.arange(len(challenge.train))
        fold = number % 2 if config.use_kfold else np.where(number < 8, 0, -1)
        folds = pd.DataFrame(
            {"id": challenge.train["id"], "group": challenge.train["path"], "fold": fold}
        )
        write_json(paths.config, to_dict(config))
        write_csv(paths.folds, folds)
        refit = len(config.fold_numbers)
        for k in (*config.fold_numbers, refit):
            for rows, ids in (
                ("oof", folds["id"][folds["fold"] == k]),
                ("test", challenge.test["id"]),
            ):
                probs = pd.DataFrame(rng.dirichlet([0.3] * 4, len(ids)), columns=LETTERS).assign(
                    id=list(ids)
                )
                if len(ids):
                    write_probabilities(paths.fold(k).probs(rows), probs)
        return paths

    return write


def folds_and_train(paths, config):
    train = load_challenge(config).train
    return read_folds(paths.folds, train), train


@pytest.mark.parametrize("how", ["mean", "geometric", "vote"])
def test_the_test_answers_have_one_more_member_and_the_out_of_fold_rows_none(scored_run, how):
    paths = scored_run("off", ensemble=how, calibrate=True)
    scored_run("on", ensemble=how, calibrate=True, refit=True)
    off, on = of_folds("off"), of_folds("on")
    pd.testing.assert_frame_equal(on.oof, off.oof, check_exact=True)
    pd.testing.assert_frame_equal(on.scores.query("fold != 'refit (fold 2)'")[["rows", "accuracy", "log_loss"]],
                                  off.scores[["rows", "accuracy", "log_loss"]].set_index(pd.Index([0, 1, 3])), check_exact=True)  # fmt: skip
    pd.testing.assert_frame_equal(on.fitted, off.fitted, check_exact=True)
    assert list(on.members) == [*off.members, "refit (fold 2)"] == on.record["members"]
    temperatures = on.record["temperatures"]
    assert temperatures == off.record["temperatures"] | {
        2: pytest.approx((temperatures[0] * temperatures[1]) ** 0.5)
    }
    assert min(temperatures.values()) > 1.5, (
        "the folds are too sure, and so is taken to be the refit"
    )
    as_scored = [read_probabilities(paths.fold(k).probs("test")) for k in (0, 1, 2)]
    pd.testing.assert_frame_equal(
        on.test, combined([scaled(as_scored[k], temperatures[k]) for k in (0, 1, 2)], how)
    )
    assert (on.test[LETTERS] - off.test[LETTERS]).abs().to_numpy().max() > 0.01
    assert (
        "refit (fold 2): trained on all rows, a member for the test rows alone" in on.who
        and "No model is refitted" in off.who
    )
    assert f"refit (fold 2) {temperatures[2]:.2f}." in on.decision


def test_a_refit_without_calibration_stays_as_it_is_scored(scored_run):
    paths = scored_run("on", calibrate=False, refit=True)
    on = of_folds("on")
    assert on.record["temperatures"] == {}
    pd.testing.assert_frame_equal(
        on.members["refit (fold 2)"], read_probabilities(paths.fold(2).probs("test"))
    )


def test_a_model_without_rows_of_its_own_gets_the_geometric_mean():
    assert temperature_of({0: 1.0, 1: 4.0, 2: 2.0}, 1) == 4 and temperature_of(
        {0: 1.0, 1: 4.0}, 2
    ) == pytest.approx(2)
    assert temperature_of({}, 2) == 1
    write_json(
        RunPaths("refit-temperatures").members, {"temperatures": {"0": 1.0, "1": 4.0, "2": 2.0}}
    )
    assert (
        temperatures_of(RunPaths("refit-temperatures"))[2] == 2 == statistics.geometric_mean([1, 4])
    )


def test_a_single_split_has_a_refit_too(scored_run):
    scored_run("single", use_kfold=False, refit=True)
    single = of_folds("single")
    assert (
        list(single.members) == ["fold 0", "refit (fold 1)"]
        and single.submission_path.name == "submission_single.csv"
    )
    assert len(single.oof) == 8


def test_a_refit_alone_is_no_ensemble(scored_run):
    paths = scored_run("alone", refit=True)
    for k in (0, 1):
        paths.fold(k).probs("test").unlink()
    with pytest.raises(Exception, match=r"expected fold\*/probs_test.csv, found none"):
        of_folds("alone")


def test_probabilities_that_a_switched_off_refit_left_are_no_members(scored_run):
    paths = scored_run("off")
    config = open_run("off")[1]
    assert paths.fold(2).probs("test").exists() and scored_folds(paths, config) == ([0, 1], [])
    assert list(of_folds("off").members) == ["fold 0", "fold 1"]


def test_a_refit_holds_out_no_row_and_scores_the_test_set_alone(scored_run):
    from vqa_utils.scoring.options import questions_of_fold

    paths = scored_run("on", refit=True)
    config = open_run("on")[1]
    train = folds_and_train(paths, config)[1]
    assert [held_out_rows(paths.folds, train, config, k).sum() for k in (0, 1, 2)] == [12, 12, 0]
    write_json(paths.fold(2).meta, {"held_out_ids": ids_hash([])})
    assert {name: len(rows) for name, rows in questions_of_fold(paths, config, 2)[1].items()} == {
        "test": 8
    }
    write_json(paths.fold(2).meta, {"held_out_ids": ids_hash(train["id"][:8])})
    with pytest.raises(Exception, match="held out others"):
        questions_of_fold(paths, config, 2)
    write_json(paths.fold(1).meta, {"held_out_ids": ids_hash([])})
    with pytest.raises(Exception, match="held out others, and may have trained on these"):
        questions_of_fold(paths, config, 1)


def test_a_number_that_no_adapter_of_the_run_has_is_refused(scored_run):
    paths = scored_run("off")
    config = open_run("off")[1]
    train = folds_and_train(paths, config)[1]
    with pytest.raises(
        FoldError, match="fold: expected one of 0, 1, found 2; with refit=true, there is one more"
    ):
        held_out_rows(paths.folds, train, config, 2)
    other = dataclasses.replace(config, n_folds=3)
    with pytest.raises(
        FoldError,
        match=r"folds\.csv: expected rows in fold 2, found 0 rows; run notebook 02_folds again",
    ):
        held_out_rows(paths.folds, train, other, 2)
    fewer = dataclasses.replace(config, use_kfold=False, refit=True)
    with pytest.raises(FoldError, match=r"expected no row in fold 1, found 12 rows"):
        held_out_rows(paths.folds, train, fewer, 1)


def test_pooled_rows_are_the_folds(scored_run):
    paths = scored_run("on", refit=True)
    config = open_run("on")[1]
    assert set(pooled(paths, config, folds_and_train(paths, config)[0], "oof")["fold"]) == {0, 1}

"""A refit as a member of the ensemble: it joins the test answers, and no out-of-fold score."""

import dataclasses
import statistics

import numpy as np
import pandas as pd
import pytest
from stand_in import folds_and_train

from vqa_utils.artifacts.files import ArtifactError, ids_hash, write_csv, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities, write_probabilities
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import to_dict
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import FoldError, held_out_rows
from vqa_utils.ensembling.combining import combined
from vqa_utils.ensembling.ensemble_of_folds import of_folds
from vqa_utils.ensembling.members import pooled, scored_folds
from vqa_utils.ensembling.temperature import read_temperatures, scaled
from vqa_utils.presets import preset

LETTERS = list("abcd")
REFIT = "refit (fold 2)"


@pytest.fixture
def scored_run(tmp_path, monkeypatch, korean_folder):
    """Writes the probabilities of two folds and a refit; those of the folds are too sharp."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))

    def write(run_id, **changes):
        paths = RunPaths(run_id)
        config = preset("demo", **{"data": str(korean_folder), "n_folds": 2, **changes})
        challenge = load_challenge(config)
        ids = challenge.train["id"]
        number = np.arange(len(ids))
        fold = number % 2 if config.use_kfold else np.where(number < 8, 0, -1)
        folds = pd.DataFrame({"id": ids, "group": challenge.train["path"], "fold": fold})
        write_json(paths.config, to_dict(config))
        write_csv(paths.folds, folds)
        rng = np.random.default_rng(0)
        refit = len(config.fold_numbers)
        for k in (*config.fold_numbers, refit):
            held_out = ids[fold == k]
            if len(held_out):
                write_probabilities(paths.fold(k).probs("oof"), sharp(rng, held_out))
            write_probabilities(paths.fold(k).probs("test"), sharp(rng, challenge.test["id"]))
        return paths

    return write


def sharp(rng, ids):
    probs = rng.dirichlet([0.3] * 4, len(ids))
    return pd.DataFrame(probs, columns=LETTERS).assign(id=list(ids))


@pytest.mark.parametrize("how", ["mean", "geometric", "vote"])
def test_a_refit_changes_nothing_that_is_out_of_fold(scored_run, how):
    scored_run("off", ensemble=how, calibrate=True)
    scored_run("on", ensemble=how, calibrate=True, refit=True)
    off, on = of_folds("off"), of_folds("on")
    pd.testing.assert_frame_equal(on.outcome.oof, off.outcome.oof, check_exact=True)
    pd.testing.assert_frame_equal(on.fit.table, off.fit.table, check_exact=True)
    columns = ["rows", "accuracy", "log_loss"]
    without, scores = (ensemble.scores.set_index("fold")[columns] for ensemble in (off, on))
    pd.testing.assert_frame_equal(scores.drop(index=REFIT), without, check_exact=True)


@pytest.mark.parametrize("how", ["mean", "geometric", "vote"])
def test_a_refit_is_one_more_member_of_the_test_answers(scored_run, how):
    paths = scored_run("off", ensemble=how, calibrate=True)
    scored_run("on", ensemble=how, calibrate=True, refit=True)
    off, on = of_folds("off"), of_folds("on")
    assert list(on.members) == [*off.members, REFIT] == on.outcome.record["members"]
    temperatures = on.outcome.record["temperatures"]
    mean = statistics.geometric_mean([temperatures[0], temperatures[1]])
    assert temperatures == off.outcome.record["temperatures"] | {2: pytest.approx(mean)}
    assert min(temperatures.values()) > 1.5, "the folds are too sure, and so, it is taken, a refit"
    members = []
    for k in (0, 1, 2):
        as_scored = read_probabilities(paths.fold(k).probs("test"))
        members.append(scaled(as_scored, temperatures[k]))
    pd.testing.assert_frame_equal(on.outcome.test, combined(members, how))
    assert (on.outcome.test[LETTERS] - off.outcome.test[LETTERS]).abs().to_numpy().max() > 0.01
    assert REFIT in on.who and REFIT not in off.who
    assert f"{REFIT} {temperatures[2]:.2f}" in on.fit.decision


def test_a_refit_without_calibration_stays_as_it_is_scored(scored_run):
    paths = scored_run("on", calibrate=False, refit=True)
    on = of_folds("on")
    assert on.outcome.record["temperatures"] == {}
    as_scored = read_probabilities(paths.fold(2).probs("test"))
    pd.testing.assert_frame_equal(on.members[REFIT], as_scored)


def test_temperatures_are_read_back_by_number():
    paths = RunPaths("refit-temperatures")
    write_json(paths.members, {"temperatures": {"0": 1.0, "2": 2.0}})
    assert read_temperatures(paths) == {0: 1.0, 2: 2.0}


def test_a_single_split_has_a_refit_too(scored_run):
    scored_run("single", use_kfold=False, refit=True)
    single = of_folds("single")
    assert list(single.members) == ["fold 0", "refit (fold 1)"] and len(single.outcome.oof) == 8
    assert single.outcome.submission_path.name == "submission_single.csv"


def test_a_refit_alone_is_no_ensemble(scored_run):
    paths = scored_run("alone", refit=True)
    for k in (0, 1):
        paths.fold(k).probs("test").unlink()
    with pytest.raises(ArtifactError, match="04_infer"):
        of_folds("alone")


def test_probabilities_that_a_switched_off_refit_left_are_no_members(scored_run):
    paths = scored_run("off")
    assert paths.fold(2).probs("test").exists()
    assert scored_folds(paths, open_run("off")[1]) == ([0, 1], [])
    assert list(of_folds("off").members) == ["fold 0", "fold 1"]


def test_a_refit_holds_out_no_row_and_scores_the_test_set_alone(scored_run):
    from vqa_utils.scoring.fold import questions_of_fold

    paths = scored_run("on", refit=True)
    config = open_run("on")[1]
    train = folds_and_train(paths, config)[1]
    assert [held_out_rows(paths.folds, train, config, k).sum() for k in (0, 1, 2)] == [12, 12, 0]
    write_json(paths.fold(2).meta, {"held_out_ids": ids_hash([])})
    questions = questions_of_fold(paths, config, 2)[1]
    assert {name: len(rows) for name, rows in questions.items()} == {"test": 8}
    for k, of_another in ((2, train["id"][:8]), (1, [])):
        write_json(paths.fold(k).meta, {"held_out_ids": ids_hash(of_another)})
        with pytest.raises(ArtifactError, match=rf"fold{k}/meta\.json.*held out others"):
            questions_of_fold(paths, config, k)
        paths.fold(k).meta.unlink()
        with pytest.raises(ArtifactError, match=rf"fold{k}/meta\.json.*found none.*03_train_fold"):
            questions_of_fold(paths, config, k)


def test_a_number_that_no_adapter_of_the_run_has_is_refused(scored_run):
    paths = scored_run("off")
    config = open_run("off")[1]
    train = folds_and_train(paths, config)[1]
    with pytest.raises(FoldError, match=r"fold: .*0, 1, found 2"):
        held_out_rows(paths.folds, train, config, 2)
    more = dataclasses.replace(config, n_folds=3)
    with pytest.raises(FoldError, match=r"folds\.csv: .*fold 2, found 0 rows"):
        held_out_rows(paths.folds, train, more, 2)
    fewer = dataclasses.replace(config, use_kfold=False, refit=True)
    with pytest.raises(FoldError, match="fold 1, found 12 rows"):
        held_out_rows(paths.folds, train, fewer, 1)


def test_pooled_rows_are_the_folds(scored_run):
    paths = scored_run("on", refit=True)
    config = open_run("on")[1]
    assert set(pooled(paths, config, folds_and_train(paths, config)[0], "oof")["fold"]) == {0, 1}

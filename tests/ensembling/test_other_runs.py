"""Runs over the same rows: checked against each other, and aligned."""

import shutil

import pandas as pd
import pytest
from finished_run import LETTERS

from vqa_utils.artifacts.files import read_json, write_csv, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.ensembling.other_runs import read_runs
from vqa_utils.errors import RunError


def rename_a_colour(csv_file):
    csv_file.write_text(csv_file.read_text().replace("빨간색", "자주색"))


def problems_of(*run_ids):
    """The lines of the error, without its head."""
    with pytest.raises(RunError) as error:
        read_runs(run_ids)
    return str(error.value).splitlines()[1:]


def test_rows_are_aligned_by_their_ids(write_run):
    write_run("one")
    write_run("two", seed=1, oof_ids=write_run.train["id"][::-1])
    runs = read_runs(["one", "two"])
    ids = list(write_run.train["id"])
    assert list(runs.oof["one"]["id"]) == ids
    assert list(runs.oof["two"]["id"]) == ids
    assert list(runs.groups["id"]) == ids
    written = read_probabilities(RunPaths("two").ensemble / "probs_oof.csv", ids)
    pd.testing.assert_frame_equal(runs.oof["two"][LETTERS], written[LETTERS])
    assert runs.groups["group"].iloc[3] == "images/train_0003.png"


def test_all_problems_are_listed_at_once(write_run):
    write_run("one")
    write_run("other", data_hash_seen="123")
    write_run("fewer", oof_ids=write_run.train["id"][2:])
    broken = write_run("broken").ensemble / "probs_test.csv"
    broken.write_text("id,a,b,c,d\nx,1,1,0,0\n")
    problems = problems_of("one", "other", "fewer", "absent", "broken", "one")
    assert len(problems) == 5
    for datum in ("- one:", "runs/other:", "runs/absent:", "broken/ensemble/probs_test.csv"):
        assert sum(datum in problem for problem in problems) == 1, datum
    (fewer,) = (problem for problem in problems if "- fewer:" in problem)
    for datum in ("24", "22", "lacks 2", "train_0000", "train_0001", "has 0"):
        assert datum in fewer


def test_data_that_changed_since_is_refused_in_each_run(write_run, tmp_path):
    write_run("one")
    write_run("two")
    rename_a_colour(tmp_path / "data" / "train.csv")
    problems = problems_of("one", "two")
    assert len(problems) == 2 and all(str(tmp_path / "data") in problem for problem in problems)


def test_runs_trained_on_more_rows_or_on_a_copy_are_members_too(write_run, tmp_path):
    write_run("one")
    extra = pd.read_csv(tmp_path / "data" / "train.csv", dtype=str).head(2)
    write_csv(tmp_path / "extra.csv", extra.assign(id=["x1", "x2"]))
    write_run("more", seed=1, extra_train=str(tmp_path / "extra.csv"))
    copied = shutil.copytree(tmp_path / "data", tmp_path / "copied")
    write_run("copied", seed=2, data=str(copied))
    assert list(read_runs(["one", "more", "copied"]).oof) == ["one", "more", "copied"]
    rename_a_colour(copied / "train.csv")
    write_run("changed", seed=2, data=str(copied))
    copied_problem, changed_problem = problems_of("one", "more", "copied", "changed")
    assert "runs/copied:" in copied_problem
    assert "- changed:" in changed_problem and "train.csv" in changed_problem


def test_a_run_changed_after_its_answers_is_refused(write_run):
    write_run("one")
    paths = write_run("two")
    write_json(paths.config, read_json(paths.config) | {"lora_r": 4})
    paths.fold(1).probs("test").unlink()
    (problem,) = problems_of("one", "two")
    assert "runs/two" in problem and "status --run-id two" in problem and "fold 1" not in problem
    write_json(paths.config, read_json(RunPaths("one").config))
    (problem,) = problems_of("one", "two")
    assert "runs/two" in problem and "fold 1" in problem


def test_other_test_rows_are_refused(write_run, tmp_path):
    copied = shutil.copytree(tmp_path / "data", tmp_path / "copied")
    rename_a_colour(copied / "test.csv")
    write_run("one")
    write_run("two", data=str(copied))
    (problem,) = problems_of("one", "two")
    assert "- two:" in problem and "test.csv" in problem and "train.csv" not in problem


def test_limited_runs_are_members_with_their_rows_alone(write_run):
    for name, seed in (("first", 0), ("second", 1)):
        write_run(name, seed=seed, limit=20, oof_ids=write_run.train["id"][:20])
    assert len(read_runs(["first", "second"]).groups) == 20


def test_one_run_is_no_blend(write_run):
    write_run("one")
    (problem,) = problems_of("one")
    assert "found 1" in problem

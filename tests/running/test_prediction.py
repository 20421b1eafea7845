"""Another test set, answered by steps like any other: reuse, the ladder, folds side by side."""

import shutil

import pandas as pd
import pytest

import run_all
from vqa_utils.artifacts.files import read_json, write_csv
from vqa_utils.artifacts.fold_settings import read_rungs
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.places import located
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.challenge import DataError
from vqa_utils.ensembling import combining
from vqa_utils.ensembling.temperature import scaled
from vqa_utils.errors import RunError
from vqa_utils.planning.machine.gpus import MachineError
from vqa_utils.running.notebooks.execution import NotebookError, OutOfMemory
from vqa_utils.running.prediction import predict

pytestmark = pytest.mark.slow

STEPS = ["r 04_infer-fold0", "r 04_infer-fold1"]


@pytest.fixture
def hidden(korean_folder, tmp_path):
    """A test set that is answered with the adapters of the run `r`: there is no train.csv."""
    folder = shutil.copytree(korean_folder, tmp_path / "hidden")
    (folder / "train.csv").unlink()
    return folder


@pytest.fixture
def run(stand_in, console, monkeypatch, korean_folder):
    """Makes the run `r` of two folds, with further arguments."""
    monkeypatch.setattr("vqa_utils.running.runner.fold_environments", lambda config, folds: [])

    def make(*arguments):
        words = ["--run-id", "r", "--data", str(korean_folder), "--set", "n_folds=2", *arguments]
        monkeypatch.setattr("sys.argv", ["run_all.py", *words])
        run_all.run(run_all.parse_arguments(), console)
        stand_in.executed.clear()

    return make


@pytest.fixture
def answer(console):
    """Answers a test set with the run `r`."""
    return lambda folder: predict(*open_run("r"), folder, console)


def test_each_adapter_answers_and_the_submission_is_theirs_combined(run, answer, hidden, stand_in):
    run()
    path = answer(hidden)
    assert stand_in.executed == STEPS
    out = RunPaths("r/predict/hidden")
    assert path == out.submission(use_kfold=True)
    assert sorted(file.stem for file in out.notebooks.iterdir()) == [
        "04_infer-fold0",
        "04_infer-fold1",
    ]
    members = [read_probabilities(out.fold(k).probs("test")) for k in (0, 1)]
    sample = pd.read_csv(hidden / "sample_submission.csv", dtype=str)
    expected = combining.submission(sample, combining.combined(members, "mean"))
    pd.testing.assert_frame_equal(pd.read_csv(path, dtype=str), expected)
    assert not (out.folder / "folds.csv").exists()


def test_whole_answers_are_reused_until_an_input_changes(run, answer, hidden, stand_in):
    run()
    answer(hidden)
    answer(hidden)
    assert stand_in.executed == STEPS
    picture = next((hidden / "images").glob("test_*"))
    picture.write_bytes(picture.read_bytes() + b" ")
    answer(hidden)
    assert stand_in.executed == STEPS * 2
    out = RunPaths("r/predict/hidden")
    write_csv(out.fold(1).probs("test"), pd.DataFrame({"id": []}))
    answer(hidden)
    assert stand_in.executed == [*STEPS * 2, STEPS[1]]
    replaced = [
        str(path.parent.name) for path in out.folder.glob("replaced/*/fold*/probs_test.csv")
    ]
    assert sorted(replaced) == ["fold0", "fold1", "fold1"]


def test_a_setting_of_the_scoring_answers_anew(run, answer, hidden, stand_in):
    run()
    answer(hidden)
    run("--resume", "--set", "tta=2")
    answer(hidden)
    assert stand_in.executed == STEPS


def test_verdicts_of_other_settings_are_not_used(run, answer, hidden, stand_in):
    """Such as whether a second look counts, of another look."""
    run()
    run("--resume", "--only", "04_infer", "--set", "tta=2")
    with pytest.raises(RunError, match=r"members\.json: .*05_ensemble.*--resume"):
        answer(hidden)
    assert not stand_in.executed
    run("--resume")
    answer(hidden)
    assert stand_in.executed == STEPS


def test_memory_that_runs_out_takes_a_rung(run, answer, hidden, stand_in, monkeypatch):
    run()

    def execute(name, archived, parameters, process=None, cell_timeout=None, following=""):
        if open_run("r", parameters["fold"])[1].score_batch > 16:
            stand_in.archive(archived, parameters)
            raise NotebookError("04_infer failed", OutOfMemory(0, "scoring"))
        stand_in.execute(name, archived, parameters, process)

    monkeypatch.setattr("vqa_utils.running.notebooks.attempts.execute", execute)
    answer(hidden)
    (rung,) = read_rungs(RunPaths("r").fold(0))
    assert rung.after == {"score_batch": 16}
    out = RunPaths("r/predict/hidden")
    assert (out.notebooks / "04_infer-fold0-out-of-memory1.ipynb").exists()


def test_a_refit_answers_with_the_mean_of_the_folds_temperatures(
    run, answer, hidden, stand_in, monkeypatch
):
    stand_in.calibrated["r"] = 0.6
    run("--refit")
    seen = []
    monkeypatch.setattr(
        combining,
        "combined",
        lambda frames, how, real=combining.combined: seen.extend(frames) or real(frames, how),
    )
    answer(hidden)
    as_scored = read_probabilities(RunPaths("r").fold(2).probs("test"))
    assert len(seen) == 3
    pd.testing.assert_frame_equal(seen[2], scaled(as_scored, 1.5))


def test_a_run_without_a_trained_fold_does_not_answer(run, answer, hidden, stand_in):
    run("--folds", "0", "--only", "02_folds")
    with pytest.raises(RunError, match="03_train_fold"):
        answer(hidden)
    assert not stand_in.executed


def test_another_folder_of_the_same_name_is_refused(run, answer, hidden, tmp_path):
    run()
    answer(hidden)
    other = shutil.copytree(hidden, tmp_path / "elsewhere" / "hidden")
    images = RunPaths("r/predict/hidden").images.read_bytes()
    with pytest.raises(RunError, match=str(hidden)):
        answer(other)
    kept = read_json(RunPaths("r/predict/hidden").provenance)
    assert located(kept["folder"]) == str(hidden)
    assert RunPaths("r/predict/hidden").images.read_bytes() == images


def test_a_broken_test_set_is_reported_before_anything_runs(run, answer, hidden, stand_in):
    run()
    next((hidden / "images").glob("test_*")).unlink()
    with pytest.raises(DataError):
        answer(hidden)
    assert not stand_in.executed


def test_a_row_too_long_for_the_gpus_is_refused_before_anything_runs(
    run, answer, hidden, stand_in, console, monkeypatch
):
    run()
    test = pd.read_csv(hidden / "test.csv", dtype=str)
    test.loc[1, "question"] += " 원" * 400
    write_csv(hidden / "test.csv", test)
    row = f"test.csv, id {test.loc[1, 'id']}"
    answer(hidden)  # the demo's base fits anywhere
    assert f"{row} (" in console.file.getvalue() and stand_in.executed == STEPS
    refused = []

    def refuse(config, gpus, tokens, name):
        refused.append((tokens > 400, name))
        raise MachineError("too long")

    monkeypatch.setattr("vqa_utils.running.prediction.check_longest_test", refuse)
    other = hidden.rename(hidden.with_name("other"))
    with pytest.raises(MachineError):
        answer(other)
    assert refused == [(True, row)] and stand_in.executed == STEPS
    assert not RunPaths("r/predict/other").provenance.exists()


@pytest.mark.parametrize("name", ["none", "test.csv", "x" * 300, "loop", "a\0b", "hidden[/red]{0}"])
def test_a_folder_that_is_none_is_told(run, answer, hidden, stand_in, name):
    run()
    (hidden / "loop").symlink_to("loop")
    with pytest.raises(RunError, match="expected a folder"):
        answer(hidden / name)
    assert not stand_in.executed and not (RunPaths("r").folder / "predict").exists()


@pytest.mark.parametrize("name", ["{run_id}", "{", "100 % [a] {0}", "[red]", "<b>$x$", "테스트"])
def test_a_folder_of_any_name_is_answered(run, answer, hidden, stand_in, name):
    run()
    folder = hidden.rename(hidden.parent / name)
    path = answer(folder)
    assert stand_in.executed == STEPS and path.parent.name == folder.name
    assert answer(folder) == path and stand_in.executed == STEPS, "reused"

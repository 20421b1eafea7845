"""The whole series through its command, on Korean questions: which files it writes, what it reuses, how it fails."""

import os
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from conftest import write_korean_challenge

from vqa_utils.artifacts.files import ArtifactError, read_json
from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.artifacts.run import open_run
from vqa_utils.ensembling.temperature import scaled, temperatures_of
from vqa_utils.scoring.options import questions_of_fold

SETTINGS = ["--set", "n_folds=2", "--set", "epochs=1", "--set", "micro_batch=4"]


def run_all(*arguments, runs, expect=0):
    environment = {**os.environ, "VQA_RUNS_DIR": str(runs)}
    found = subprocess.run(
        [sys.executable, "run_all.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == expect, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_korean_challenge(tmp_path_factory.mktemp("korean") / "twelve", train=12, test=5)


@pytest.fixture(scope="module")
def output(runs, folder):
    return run_all("--data", str(folder), "--run-id", "korean", *SETTINGS, runs=runs)


@pytest.fixture
def paths(output, runs, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(runs))
    return RunPaths("korean")


ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "README.md", "vqa_config.json"}
FOLD = {
    "config.json",
    "train_log.csv",
    "meta.json",
    *(f"probs_{rows}.csv" for rows in ("oof", "test", "zero_shot", "blank")),
}
NOTEBOOKS = ["01_eda", "02_folds", "03_train_fold-fold0", "03_train_fold-fold1", "04_infer-fold0", "04_infer-fold1",
             "05_ensemble", "06_analysis"]  # fmt: skip
REPORT = {"index.html", "folds.csv", "baselines.csv", "groups.csv", "confidence.csv", "worst_mistakes.csv",
          "accuracy_against_baselines.png", "confusion.png", "position_bias.png", "accuracy_by_group.png",
          "reliability.png", "places.csv"}  # fmt: skip


def test_a_run_writes_exactly_these_files(paths):
    expected = {"config.json", "provenance.json", "folds.csv", "submission_ensemble.csv"}
    expected |= {
        f"ensemble/{name}" for name in ("probs_oof.csv", "probs_test.csv", "members.json")
    } | {f"report/{name}" for name in REPORT}
    expected |= {f"notebooks/{name}.ipynb" for name in NOTEBOOKS} | {
        f"stages/{name}.json" for name in NOTEBOOKS
    }
    for k in (0, 1):
        expected |= {f"fold{k}/{name}" for name in FOLD} | {
            f"fold{k}/adapter/{name}" for name in ADAPTER
        }
    found = {
        str(path.relative_to(paths.folder)) for path in paths.folder.rglob("*") if path.is_file()
    }
    assert found == expected


def test_the_files_keep_the_contracts_between_the_stages(paths, folder):
    train, test = (pd.read_csv(folder / f"{name}.csv", dtype=str) for name in ("train", "test"))
    folds = pd.read_csv(paths.folds, dtype={"id": str})
    assert list(folds) == ["id", "group", "fold"] and list(folds["id"]) == list(train["id"])
    for k in (0, 1):
        held_out = folds["id"][folds["fold"] == k]
        for rows, ids in (
            ("oof", held_out),
            ("zero_shot", held_out),
            ("blank", held_out),
            ("test", test["id"]),
        ):
            read_probabilities(paths.fold(k).probs(rows), ids)
        assert (
            read_json(paths.fold(k).meta)["held_out_rows"]
            == len(held_out)
            == 12 - read_json(paths.fold(k).meta)["train_rows"]
        )
        assert read_json(paths.fold(k).adapter / "vqa_config.json") == read_json(paths.config)
    temperatures = temperatures_of(paths)
    members = [
        scaled(
            read_probabilities(paths.fold(k).probs("test"), test["id"]), temperatures.get(k, 1.0)
        )
        for k in (0, 1)
    ]
    mean = read_probabilities(paths.ensemble / "probs_test.csv", test["id"])
    assert (
        (members[0].iloc[:, 1:] + members[1].iloc[:, 1:]) / 2 - mean.iloc[:, 1:]
    ).abs().max().max() < 1e-9
    answers = pd.read_csv(paths.submission(True))
    sample = pd.read_csv(folder / "sample_submission.csv")
    assert list(answers) == ["id", "answer"] and list(answers["id"]) == list(sample["id"])
    assert list(answers["answer"]) == list(mean.set_index("id").loc[sample["id"]].idxmax(axis=1))


def test_every_archived_notebook_ran_with_its_parameters(paths):
    for name in NOTEBOOKS:
        notebook = nbformat.read(paths.notebooks / f"{name}.ipynb", 4)
        given = notebook.metadata["papermill"]["parameters"]
        assert given == {"run_id": "korean"} | (
            {"fold": int(name[-1])} if "fold" in name[2:] and name[-1].isdigit() else {}
        )
        assert (
            notebook.metadata["papermill"]["exception"] is None
            and "jupytext" not in notebook.metadata
        )
        assert [
            o.text
            for cell in notebook.cells
            for o in cell.get("outputs", [])
            if o.get("name") == "stderr"
        ] == []


def test_the_origin_of_the_run_is_recorded(paths, folder):
    found = read_json(paths.provenance)
    assert (
        set(found["inputs"]) == {"train.csv", "test.csv", "sample_submission.csv"}
        and found["packages"]["transformers"]
    )
    assert (paths.folder.parent / "latest").resolve() == paths.folder.resolve()


def test_the_terminal_shows_the_scores_and_where_the_submission_is(output):
    for text in (
        "run korean",
        "03_train_fold-fold1",
        "log_loss",
        "base, zero-shot",
        "runs/korean/submission_ensemble.csv",
    ):
        assert text in output
    assert "where the time went" in output and "kernel start" in output


def test_a_resumed_run_reuses_what_is_whole_and_makes_what_is_missing(paths, runs, tmp_path):
    kept = shutil.copytree(paths.folder, tmp_path / "kept")
    (paths.ensemble / "probs_test.csv").unlink()
    dry = run_all("--run-id", "korean", "--resume", "--dry-run", runs=runs)
    assert dry.count("reuse") == 7 and "05_ensemble" in dry and "run_id=korean fold=1" in dry
    assert not (paths.ensemble / "probs_test.csv").exists(), "a dry run runs nothing"
    found = run_all("--run-id", "korean", "--resume", runs=runs)
    assert found.count("reused") == 7
    assert (paths.ensemble / "probs_test.csv").read_bytes() == (
        kept / "ensemble" / "probs_test.csv"
    ).read_bytes()


def test_settings_that_an_adapter_does_not_depend_on_leave_it_alone(paths, runs):
    dry = run_all(
        "--run-id",
        "korean",
        "--resume",
        "--dry-run",
        "--set",
        "score_batch=3",
        "--from",
        "03_train_fold",
        runs=runs,
    )
    assert dry.count("reuse") == 2 and dry.count("run again") == 4
    dry = run_all(
        "--run-id",
        "korean",
        "--resume",
        "--dry-run",
        "--set",
        "ensemble=vote",
        "--set",
        "calibrate=false",
        runs=runs,
    )
    assert dry.count("reuse") == 6 and dry.count("run again") == 2
    dry = run_all(
        "--run-id",
        "korean",
        "--resume",
        "--dry-run",
        "--set",
        "lora_r=3",
        "--from",
        "03_train_fold",
        runs=runs,
    )
    assert dry.count("reuse") == 0


def test_an_adapter_that_held_out_other_rows_is_refused(paths, runs):
    kept = paths.folds.read_text()
    paths.folds.write_text(
        pd.read_csv(paths.folds).assign(fold=lambda f: 1 - f["fold"]).to_csv(index=False)
    )
    found = run_all(
        "--run-id", "korean", "--resume", "--only", "04_infer", "--folds", "0", runs=runs, expect=1
    )
    with pytest.raises(ArtifactError, match="held out others, and may have trained on these"):
        questions_of_fold(
            paths, open_run("korean")[1], 0
        )  # what the notebook asks first, by hand too
    paths.folds.write_text(kept)
    assert "found others at 03_train_fold-fold0; without --from" in found
    run_all("--run-id", "korean", "--resume", runs=runs)


def test_another_test_set_is_answered_with_the_runs_adapters(paths, runs, folder, tmp_path):
    hidden = tmp_path / "hidden"
    shutil.copytree(folder, hidden)
    for name in ("train.csv", "sample_submission.csv"):
        (hidden / name).unlink()
    found = run_all("--run-id", "korean", "--predict", str(hidden), runs=runs)
    assert "runs/korean/predict/hidden/submission_ensemble.csv" in found
    answers = pd.read_csv(paths.folder / "predict/hidden/submission_ensemble.csv")
    pd.testing.assert_frame_equal(
        answers, pd.read_csv(paths.submission(True))
    )  # the same rows, the same adapters
    other = shutil.copytree(hidden, tmp_path / "elsewhere" / "hidden")
    refused = run_all("--run-id", "korean", "--predict", str(other), runs=runs, expect=1)
    assert f"has the answers to {hidden}" in refused


def test_bad_input_is_reported_before_anything_runs(runs, folder, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    frame = pd.read_csv(bad / "train.csv").assign(answer="z")
    frame.to_csv(bad / "train.csv", index=False)
    found = run_all("--data", str(bad), "--run-id", "bad", runs=runs, expect=1)
    assert (
        "train.csv line 2: answer: expected a, b, c or d, found 'z'" in found
        and "Traceback" not in found
    )
    assert not (runs / "bad").exists()


def test_a_notebook_whose_input_is_missing_says_what_to_run_first(runs, folder, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(runs))
    found = run_all(
        "--data",
        str(folder),
        "--run-id",
        "early",
        "--only",
        "05_ensemble",
        *SETTINGS,
        runs=runs,
        expect=1,
    )
    assert "run notebook 02_folds first" in found and not RunPaths("early").notebooks.exists(), (
        "before any kernel starts"
    )
    run_all("--data", str(folder), "--run-id", "early", "--only", "02_folds", *SETTINGS, runs=runs)
    found = run_all("--run-id", "early", "--resume", "--only", "05_ensemble", runs=runs, expect=1)
    assert (
        "run notebooks 03_train_fold and 04_infer first" in found
        and "runs/early/notebooks/05_ensemble.ipynb" in found
    )


def test_a_preset_that_cannot_run_here_says_so_at_once(runs, folder):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    found = run_all("--preset", "safe", "--data", str(folder), runs=runs, expect=1)
    assert "expected 18.8 GiB of GPU memory" in found and "presets that work here: demo" in found

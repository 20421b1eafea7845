"""The whole series through its command, on Korean questions: which files it writes, what it reuses, how it fails."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from korean_challenge import write_korean_challenge
from planted import USER, names_below, write_home
from safetensors.numpy import load_file
from stray_outputs import stray_outputs

from vqa_utils.artifacts.files import ArtifactError, read_json
from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.artifacts.run import open_run
from vqa_utils.ensembling.temperature import read_temperatures, scaled
from vqa_utils.scoring.fold import questions_of_fold

pytestmark = [pytest.mark.slow, pytest.mark.in_order]
WEIGHTS = "adapter_model.safetensors"
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


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """The home folder of somebody with secrets, as the series sees it."""
    home = tmp_path_factory.mktemp("home") / USER
    with pytest.MonkeyPatch.context() as patch:
        for name, value in write_home(home).items():
            patch.setenv(name, value)
        yield home


@pytest.fixture(scope="module")
def runs(home):
    return home / "runs"


@pytest.fixture(scope="module")
def folder(home):
    return write_korean_challenge(home / "data" / "twelve", train=12, test=5)


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
REPORT = {"index.html", "results.json", "confidence.csv", "folds.csv", "letters.csv", "worst_mistakes.csv", "suspect_labels.csv",
          *(f"{part}.{kind}" for part in ("baselines", "confusion", "groups", "positions", "reliability")
            for kind in ("csv", "png"))}  # fmt: skip


def test_a_run_writes_exactly_these_files(paths):
    expected = {"config.json", "provenance.json", "model.json", "images.csv", "folds.csv"}
    expected |= {"submission_ensemble.csv", "progress.json"}
    expected |= {
        f"ensemble/{name}" for name in ("probs_oof.csv", "probs_test.csv", "members.json")
    } | {f"report/{name}" for name in REPORT}
    for name in NOTEBOOKS:
        expected |= {f"notebooks/{name}.ipynb", f"notebooks/{name}.html", f"stages/{name}.json"}
    for k in (0, 1):
        expected |= {f"fold{k}/{name}" for name in FOLD} | {
            f"fold{k}/adapter/{name}" for name in ADAPTER
        }
    found = {
        str(path.relative_to(paths.folder)) for path in paths.folder.rglob("*") if path.is_file()
    }
    assert found == expected


def test_folds_around_one_base_give_the_same_bits(paths, folder, tmp_path):
    """As the run before, whose folds each loaded a base; both with a thread for each fold."""
    changes = ["--set", "folds_at_once=2", "--set", "baselines=false", *SETTINGS]
    output = run_all("--data", str(folder), "--run-id", "shared", *changes, runs=tmp_path)
    assert "for 2 folds, 2 at a time" in output
    assert "lent 4 times" in output
    names = ["probs_oof.csv", "probs_test.csv"]
    shared_run = tmp_path / "shared"
    for k in (0, 1):
        for name in (f"adapter/{WEIGHTS}", *names):
            own = paths.fold(k).folder / name
            other = shared_run / f"fold{k}" / name
            assert other.read_bytes() == own.read_bytes(), other
    first, second = (load_file(shared_run / f"fold{k}/adapter/{WEIGHTS}") for k in (0, 1))
    moved = [name for name, weights in first.items() if "lora_B" in name and weights.any()]
    assert len(moved) == len(first) // 2, "each B began at zero"
    assert not any(np.array_equal(first[name], second[name]) for name in moved)


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
    temperatures = read_temperatures(paths)
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


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_archived_notebook_ran_with_its_parameters(paths, name):
    notebook = nbformat.read(paths.notebooks / f"{name}.ipynb", 4)
    expected = {"run_id": "korean"}
    if "-fold" in name:
        expected["fold"] = int(name[-1])
    assert notebook.metadata["papermill"]["parameters"] == expected
    assert notebook.metadata["papermill"]["exception"] is None
    assert "jupytext" not in notebook.metadata
    assert stray_outputs(notebook) == []


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
        "log loss",
        "base, zero-shot",
        "runs/korean/submission_ensemble.csv",
    ):
        assert text in output
    assert "where the time went" in output and "kernel start" in output


def resume(*arguments, runs, expect=0):
    return run_all("--run-id", "korean", "--resume", *arguments, runs=runs, expect=expect)


def test_a_resumed_run_reuses_what_is_whole_and_makes_what_is_missing(paths, runs):
    ensemble = paths.ensemble / "probs_test.csv"
    before = ensemble.read_bytes()
    ensemble.unlink()
    dry = resume("--dry-run", runs=runs)
    assert dry.count("reuse") == 7 and "run_id=korean fold=1" in dry
    assert not ensemble.exists(), "a dry run runs nothing"
    found = resume(runs=runs)
    assert found.count("reused") == 7
    assert ensemble.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "start", "reused", "run_again"),
    [
        (["score_batch=3"], "03_train_fold", 2, 4),
        (["ensemble=vote", "calibrate=false"], "", 6, 2),
        (["lora_r=3"], "03_train_fold", 0, 6),
    ],
)
def test_a_setting_reruns_only_the_notebooks_that_depend_on_it(
    paths, runs, settings, start, reused, run_again
):
    arguments = ["--dry-run"]
    for setting in settings:
        arguments += ["--set", setting]
    if start:
        arguments += ["--from", start]
    dry = resume(*arguments, runs=runs)
    assert dry.count("reuse") == reused and dry.count("run again") == run_again


def test_an_adapter_that_held_out_other_rows_is_refused(paths, runs):
    kept = paths.folds.read_text()
    folds = pd.read_csv(paths.folds)
    paths.folds.write_text(folds.assign(fold=1 - folds["fold"]).to_csv(index=False))
    found = resume("--only", "04_infer", "--folds", "0", runs=runs, expect=1)
    assert "03_train_fold-fold0" in found
    with pytest.raises(ArtifactError, match="held out others"):  # the notebook by hand asks first
        questions_of_fold(paths, open_run("korean")[1], 0)
    paths.folds.write_text(kept)
    resume(runs=runs)


def test_another_test_set_is_answered_with_the_runs_adapters(paths, runs, folder, tmp_path):
    hidden = tmp_path / "hidden"
    shutil.copytree(folder, hidden)
    for name in ("train.csv", "sample_submission.csv"):
        (hidden / name).unlink()
    found = run_all("predict", str(hidden), "--run-id", "korean", runs=runs)
    assert "runs/korean/predict/hidden/submission_ensemble.csv" in found
    answers = pd.read_csv(paths.folder / "predict/hidden/submission_ensemble.csv")
    pd.testing.assert_frame_equal(
        answers, pd.read_csv(paths.submission(True))
    )  # the same rows, the same adapters
    other = shutil.copytree(hidden, tmp_path / "elsewhere" / "hidden")
    refused = run_all("predict", str(other), "--run-id", "korean", runs=runs, expect=1)
    assert f"has the answers to {hidden}" in refused


def test_bad_input_is_reported_before_anything_runs(runs, folder, tmp_path):
    bad = shutil.copytree(folder, tmp_path / "bad")
    frame = pd.read_csv(bad / "train.csv").assign(answer="z")
    frame.to_csv(bad / "train.csv", index=False)
    found = run_all("--data", str(bad), "--run-id", "bad", runs=runs, expect=1)
    assert "train.csv line 2: answer:" in found and "'z'" in found
    assert "Traceback" not in found and not (runs / "bad").exists()


def test_a_notebook_without_its_input_names_the_notebooks_to_run_first(runs, folder, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(runs))
    new_run = ["--data", str(folder), "--run-id", "early", *SETTINGS]
    found = run_all(*new_run, "--only", "05_ensemble", runs=runs, expect=1)
    assert "02_folds" in found
    assert not RunPaths("early").notebooks.exists(), "no kernel has started"
    run_all(*new_run, "--only", "02_folds", runs=runs)
    found = run_all("--run-id", "early", "--resume", "--only", "05_ensemble", runs=runs, expect=1)
    assert "03_train_fold and 04_infer" in found
    assert "runs/early/notebooks/05_ensemble.ipynb" in found


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_a_preset_that_cannot_run_here_is_refused_with_what_it_needs(runs, folder):
    found = run_all("--preset", "safe", "--data", str(folder), runs=runs, expect=1)
    need = re.search(r"([\d.]+) GiB of GPU memory", found)
    assert need and float(need[1]) > 15 and "presets that work here: demo" in found


def test_no_file_of_a_run_names_a_secret_a_folder_a_person_or_a_host(output, runs, home):
    """Of all the runs of these tests: whole ones, failed ones, answers to other rows."""
    assert len(list(runs.rglob("*.json"))) > 20
    assert names_below(runs, home) == []

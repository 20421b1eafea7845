"""What `--resume` makes of a run with a file that is empty, or ends in the middle."""

import shutil

import pytest

import run_all
from vqa_utils.artifacts.files import TornFile, read_json, sha256
from vqa_utils.artifacts.paths import RunPaths

pytestmark = pytest.mark.slow

# Each kind of file of a run, and the notebooks that make it again
MADE_BY = {
    "provenance.json": [],
    "images.csv": [],
    "folds.csv": ["02_folds"],
    "fold0/config.json": [],
    "fold0/adapter/vqa_config.json": ["03_train_fold-fold0"],
    "fold0/train_log.csv": ["03_train_fold-fold0"],
    "fold0/meta.json": ["03_train_fold-fold0"],
    "fold0/probs_oof.csv": ["04_infer-fold0"],
    "fold1/probs_test.csv": ["04_infer-fold1"],
    "ensemble/members.json": ["05_ensemble"],
    "ensemble/probs_oof.csv": ["05_ensemble"],
    "submission_ensemble.csv": ["05_ensemble"],
    "report/results.json": ["06_analysis"],
    "progress.json": [],
    "stages/02_folds.json": ["02_folds"],
    "stages/03_train_fold-fold1.json": ["03_train_fold-fold1"],
    "stages/06_analysis.json": ["06_analysis"],
    "notebooks/01_eda.ipynb": [],
    "notebooks/03_train_fold-fold0.ipynb": [],
}
# What has other contents each time, or is kept for people alone
NOT_COMPARED = ("provenance.json", "progress.json", "index.html", "replaced", "notebooks")
# Written with the fold's next notebook; until then the run's settings and the log of rungs count
WRITTEN_LATER = "fold0/config.json"


@pytest.fixture
def command(stand_in, console, monkeypatch, korean_folder):
    """Runs `run_all.py` on the run `r` of two folds; returns what it printed and executed."""

    def run(*words):
        stand_in.executed.clear()
        monkeypatch.setattr("sys.argv", ["run_all.py", *words, "--run-id", "r"])
        before = len(console.file.getvalue())
        run_all.run(run_all.parse_arguments(), console)
        executed = [name.removeprefix("r ") for name in stand_in.executed]
        return console.file.getvalue()[before:], executed

    run.start = ("--data", str(korean_folder), "--set", "n_folds=2")
    run(*run.start)
    return run


def contents(folder):
    """The hash of each file of a run, by its path."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {
        str(file): sha256(folder / file)
        for file in files
        if not {file.parts[0], file.name} & set(NOT_COMPARED)
    }


def tear(file, how):
    size = {"empty": 0, "half": file.stat().st_size // 2}[how]
    file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize("how", ["empty", "half"])
@pytest.mark.parametrize("name", MADE_BY)
def test_a_torn_file_is_stepped_over(command, name, how):
    folder = RunPaths("r").folder
    whole = contents(folder)
    tear(folder / name, how)
    command("status")
    printed, executed = command("--resume")
    assert executed == MADE_BY[name]
    assert {**contents(folder), WRITTEN_LATER: ""} == {**whole, WRITTEN_LATER: ""}
    assert executed == [] or "runs again: " in printed
    assert command("--resume")[1] == [], "it is whole now"


@pytest.mark.parametrize("how", ["empty", "half"])
def test_torn_settings_of_a_run_are_told_with_what_to_do(command, how):
    paths = RunPaths("r")
    whole = contents(paths.folder)
    tear(paths.config, how)
    for words in (["--resume"], ["status"], ["--force", *command.start]):
        with pytest.raises(TornFile, match=r"runs/r/config.json .*: .*; delete it and repeat"):
            command(*words)
    paths.config.unlink()
    assert command(*command.start)[1] == [], "what is complete is reused"
    assert contents(paths.folder) == whole


def test_a_torn_origin_stays_among_the_earlier_ones(command):
    tear(RunPaths("r").provenance, "half")
    command("--resume")
    (earlier,) = read_json(RunPaths("r").provenance)["earlier"]
    assert "expected JSON" in earlier["torn"]


def test_a_kept_run_is_not_changed_by_a_look_at_it(command, tmp_path):
    folder = RunPaths("r").folder
    tear(folder / "fold0" / "meta.json", "half")
    shutil.copytree(folder, tmp_path / "copy")
    command("status")
    command("--resume", "--dry-run")
    assert contents(folder) == contents(tmp_path / "copy")

"""Sweeps through the command, with a stand-in for the notebooks alone."""

import re

import pandas as pd
import pytest

import run_all
from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import RunPaths, comparison_file
from vqa_utils.experiments.sweep_points import SweepError

pytestmark = pytest.mark.slow

GRID = """
data: DATA
set: {n_folds: 2, learning_rate: 1e-3}
grid:
  seed: [1, 2]
  lora_r: [4, 8]
also:
  - {tta: 4}
"""
POINTS = [
    "little-seed=1-lora_r=4",
    "little-seed=1-lora_r=8",
    "little-seed=2-lora_r=4",
    "little-seed=2-lora_r=8",
    "little-tta=4",
]
NOTEBOOKS = 8  # of a run of two folds
COMBINING = ["05_ensemble", "06_analysis"]


@pytest.fixture
def command(stand_in, console, monkeypatch, tmp_path, korean_folder):
    """Runs `run_all.py sweep` on a file's text, or `GRID`, and returns what it printed."""

    def run(*options, text=GRID):
        file = tmp_path / "little.yaml"
        file.write_text(text.replace("DATA", str(korean_folder)), encoding="utf-8")
        monkeypatch.setattr("sys.argv", ["run_all.py", "sweep", str(file), *options])
        before = len(console.file.getvalue())
        try:
            run_all.run(run_all.parse_arguments(), console)
        finally:
            run.printed = console.file.getvalue()[before:]
        return run.printed

    return run


@pytest.fixture
def states(command):
    """The state of each point of a file's text, by the name of its run."""

    def states(text=GRID):
        return dict(re.findall(r"│ (little\S*) +│ (.*?) +│", command("--dry-run", text=text)))

    return states


def executed(stand_in, run_id):
    """Return the notebooks that were executed in a run, in their order."""
    names = [name.split() for name in stand_in.executed]
    return [notebook for run, notebook in names if run == run_id]


def taken_over(printed):
    """Return the steps that were copied, by the run that they come from; the last copy of each."""
    lines = re.findall(r"^taken over from (\S+): (.*)$", printed, re.MULTILINE)
    return {run_id: steps.split(", ") for run_id, steps in lines}


def test_all_points_run_and_are_compared(command, states, stand_in):
    stand_in.right[POINTS[2]] = 4
    printed = command()
    assert len(stand_in.executed) == 5 * NOTEBOOKS
    table = pd.read_csv(comparison_file())
    assert sorted(table["run"]) == sorted(POINTS)
    assert table["run"][0] == POINTS[2] and f"Behind {POINTS[2]} " in printed
    assert read_json(RunPaths(POINTS[0]).config)["seed"] == 1
    assert states() == dict.fromkeys(POINTS, "finished")


def test_a_failed_point_ends_alone_and_the_same_command_goes_on(command, states, stand_in):
    failing = POINTS[1]
    stand_in.broken.add(failing)
    with pytest.raises(SweepError, match=rf"(?s)1 of 5 .*{failing}: 03_train_fold.*: broken"):
        command()
    assert re.search(rf"left out: {failing}: .*\b2 notebooks", command.printed)
    assert len(pd.read_csv(comparison_file())) == 4
    others = [point for point in POINTS if point != failing]
    found = states()
    assert found.pop(failing).startswith("2 of 8")
    assert found == dict.fromkeys(others, "finished")
    stand_in.broken.clear()
    stand_in.executed.clear()
    printed = command()
    assert len(stand_in.executed) == NOTEBOOKS - 2 == len(executed(stand_in, failing))
    assert printed.count("reused\n") == 4 + 2, "four points, and two notebooks of the fifth"
    assert len(pd.read_csv(comparison_file())) == 5


def test_a_stopped_sweep_goes_on_without_repeating_a_notebook(
    command, states, stand_in, monkeypatch
):
    def stopped(name, archived, parameters, process=None, cell_timeout=None, following=""):
        if len(stand_in.executed) == NOTEBOOKS + 5:
            raise KeyboardInterrupt
        stand_in.execute(name, archived, parameters, process)

    monkeypatch.setattr("vqa_utils.running.runner.fold_environments", lambda config, folds: [])
    with monkeypatch.context() as patch:
        patch.setattr("vqa_utils.running.notebooks.attempts.execute", stopped)
        with pytest.raises(KeyboardInterrupt):
            command()
    first, second, *others = states().values()
    assert first == "finished" and second.startswith("5 of 8")
    assert others == ["new"] * 3
    command()
    assert len(stand_in.executed) == len(set(stand_in.executed)) == 5 * NOTEBOOKS


def test_changed_settings_of_the_file_make_the_points_anew(command, states, stand_in):
    text = "data: DATA\nset: {n_folds: 2, learning_rate: 1e-3}\ngrid: {lora_r: [4, 8]}"
    changed = text.replace("1e-3", "2e-3")
    command(text=text)
    assert all(state.startswith("0 of 8") for state in states(changed).values())
    command(text=changed)
    assert len(stand_in.executed) == 4 * NOTEBOOKS
    assert read_json(RunPaths("little-lora_r=4").config)["learning_rate"] == 2e-3
    assert set(states(changed.replace("4, 8", "8, 4")).values()) == {"finished"}
    command("--force", text=changed)
    assert len(stand_in.executed) == 6 * NOTEBOOKS


def test_a_point_takes_over_steps_that_another_has_trained_and_scored(command, states, stand_in):
    text = (
        "data: DATA\nset: {n_folds: 2}\ngrid: {ensemble: [mean, vote]}\n"
        "also: [{tta: 2}, {tta: 2, calibrate: false}, {lora_r: 4}]"
    )
    mean, vote = "little-ensemble=mean", "little-ensemble=vote"
    stand_in.climbed.add(mean)
    printed = command(text=text)
    assert len(executed(stand_in, mean)) == NOTEBOOKS
    assert len(executed(stand_in, "little-lora_r=4")) == NOTEBOOKS
    assert executed(stand_in, vote) == COMBINING
    assert executed(stand_in, "little-tta=2-calibrate=false") == COMBINING
    scoring = ["04_infer-fold0", "04_infer-fold1"]
    assert sorted(executed(stand_in, "little-tta=2")) == [*scoring, *COMBINING]
    assert printed.count("taken over from ") == printed.count("took over notebooks of ") == 3
    assert "03_train_fold-fold1" in taken_over(printed)[mean]
    assert re.search(rf"03_train_fold-fold1 +│[^\n]* {mean}", printed), "the table of times"
    assert set(states(text).values()) == {"finished"}

    table = pd.read_csv(comparison_file(), keep_default_na=False).set_index("run")
    assert table["train_minutes"].unique() == [3] and table["notebook_minutes"].unique() == [4]
    assert table["minutes_from"].to_dict() == {
        mean: "",
        vote: mean,
        "little-tta=2": mean,
        "little-tta=2-calibrate=false": f"{mean} little-tta=2",
        "little-lora_r=4": "",
    }


@pytest.mark.parametrize("pattern", ["fold*/**/*", "stages/03*", "stages/04*", "folds.csv"])
def test_files_taken_over_are_the_same_bytes(command, stand_in, pattern):
    stand_in.climbed.add("little-ensemble=mean")
    command(text="data: DATA\nset: {n_folds: 2}\ngrid: {ensemble: [mean, vote]}")
    source = RunPaths("little-ensemble=mean")
    copy = RunPaths("little-ensemble=vote")
    files = [path for path in source.folder.glob(pattern) if path.is_file()]
    assert files
    for file in files:
        assert (copy.folder / file.relative_to(source.folder)).read_bytes() == file.read_bytes()
    assert read_json(copy.fold(1).rungs), "the rungs are a part of the training"


def test_files_of_a_point_with_other_settings_are_set_aside(command, states, stand_in):
    text = "data: DATA\nset: {n_folds: 2}\ngrid: {ensemble: [mean, vote]}"
    changed = text.replace("n_folds: 2", "n_folds: 2, epochs: 1")
    command(text=text)
    stand_in.executed.clear()
    command(text=changed)
    assert len(stand_in.executed) == NOTEBOOKS + len(COMBINING)
    assert set(states(changed).values()) == {"finished"}
    vote = RunPaths("little-ensemble=vote")
    assert len(list(vote.folder.glob("replaced/*/fold0/meta.json"))) == 1


def test_a_training_with_a_changed_file_is_not_taken_over(command, stand_in):
    text = "data: DATA\nset: {n_folds: 2}\ngrid: {ensemble: [mean]}"
    command(text=text)
    RunPaths("little-ensemble=mean").fold(1).train_log.write_text("step\nspoilt\n")
    printed = command(text=text.replace("[mean]", "[vote, mean]"))
    assert taken_over(printed)["little-ensemble=mean"] == [
        "01_eda",
        "02_folds",
        "03_train_fold-fold0",
        "04_infer-fold0",
        "04_infer-fold1",
    ]
    assert "03_train_fold-fold1" in executed(stand_in, "little-ensemble=vote")


def test_a_refit_is_taken_over_too(command, stand_in):
    command(text="data: DATA\nset: {n_folds: 2, refit: true}\ngrid: {ensemble: [mean, vote]}")
    assert executed(stand_in, "little-ensemble=vote") == COMBINING


def test_unusable_settings_of_one_point_keep_all_from_starting(command, stand_in):
    with pytest.raises(SweepError, match="little-lora_r=0: "):
        command(text="data: DATA\ngrid: {lora_r: [8, 0]}")
    assert not stand_in.executed


def test_a_machine_that_cannot_run_a_point_is_named_before_the_first_starts(
    command, states, stand_in, monkeypatch
):
    monkeypatch.setattr("vqa_utils.experiments.sweep.find_gpus", list)
    text = "data: DATA\ngrid: {preset: [demo, safe, balanced]}"
    with pytest.raises(SweepError) as refused:
        command(text=text)
    problems = re.findall(r"\n  - (little\S*): .*GPU", str(refused.value))
    assert problems == ["little-preset=safe", "little-preset=balanced"]
    assert not stand_in.executed
    assert len(states(text)) == 3

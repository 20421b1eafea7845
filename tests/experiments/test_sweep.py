"""Sweeps through the command, with a stand-in for the notebooks alone."""

import re

import pandas as pd
import pytest

import run_all
from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import ROOT, RunPaths, comparison_file
from vqa_utils.experiments.sweep_points import SweepError, read_points
from vqa_utils.planning.gpus import T4

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


@pytest.fixture
def sweep(tmp_path):
    """Writes a sweep's file."""

    def write(text, name="little.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def command(stand_in, console, monkeypatch, sweep, korean_folder):
    """Runs `run_all.py --sweep` on a file's text, or `GRID`, and returns what it printed."""

    def run(*arguments, text=GRID):
        monkeypatch.setattr(
            "sys.argv",
            [
                "run_all.py",
                "--sweep",
                str(sweep(text.replace("DATA", str(korean_folder)))),
                *arguments,
            ],
        )
        before = len(console.file.getvalue())
        try:
            run_all.run(run_all.parse_arguments(), console)
        finally:
            run.printed = console.file.getvalue()[before:]
        return run.printed

    return run


def states(text):
    return dict(re.findall(r"│ (little\S*) +│ (.*?) +│", text))


def test_the_points_are_the_product_of_the_grid_and_what_stands_beside_it(sweep, korean_folder):
    points = read_points(sweep(GRID.replace("DATA", str(korean_folder))), [])
    assert [point.run_id for point in points] == POINTS
    assert [(p.config.seed, p.config.lora_r, p.config.tta) for p in points] == [
        (1, 4, 1),
        (1, 8, 1),
        (2, 4, 1),
        (2, 8, 1),
        (42, 8, 4),
    ]
    assert {
        (p.config.preset, p.config.n_folds, p.config.learning_rate, p.config.data) for p in points
    } == {("demo", 2, 1e-3, str(korean_folder))}


def test_a_points_own_settings_stand_above_those_of_all(sweep):
    points = read_points(sweep("set: {seed: 7, tta: 2}\ngrid: {seed: [1]}\nalso: [{tta: 4}]"), [])
    assert [(point.config.seed, point.config.tta) for point in points] == [(1, 2), (7, 4)]


def test_the_sweep_in_the_readme_has_the_points_that_it_names(sweep):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    points = read_points(
        sweep(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1], "grid.yaml"), []
    )
    assert len(points) == 7 and "runs the seven one after the other" in text
    assert f"`runs/{points[0].run_id}`" in text and {point.config.epochs for point in points} == {1}


def test_a_points_name_is_a_folders_and_does_not_depend_on_how_a_number_is_written(sweep):
    text = "grid: {max_memory: [[14GB, 13GB]], learning_rate: [5e-5, 1.0e-4], epochs: [1], preset: [safe]}\nalso: [{}]"
    found = read_points(sweep(text, "a b.yaml"), [T4, T4])
    assert [point.run_id for point in found] == [
        "a_b-max_memory=14GB_13GB-learning_rate=5e-05-epochs=1-preset=safe",
        "a_b-max_memory=14GB_13GB-learning_rate=0.0001-epochs=1-preset=safe",
        "a_b",
    ]
    assert (
        found[0].config.preset == "safe"
        and found[0].config.max_memory == ("14GB", "13GB")
        and found[0].config.is_resolved
    )
    same = read_points(
        sweep(text.replace("5e-5", "0.00005").replace("[1]", "[1.0]"), "a b.yaml"), [T4, T4]
    )
    assert same == found


def test_all_points_run_and_are_compared(command, stand_in):
    stand_in.right[POINTS[2]] = 4
    text = command()
    assert len(stand_in.executed) == 5 * NOTEBOOKS
    table = pd.read_csv(comparison_file())
    assert sorted(table["run"]) == sorted(POINTS) and table["run"][0] == POINTS[2]
    assert (
        "lora_r=4" in text and f"Behind {POINTS[2]} beyond chance (p < 0.01): none, of 4." in text
    )
    assert read_json(RunPaths(POINTS[0]).config)["seed"] == 1
    assert set(states(command("--dry-run")).values()) == {"finished"}


def test_a_failed_point_ends_alone_and_the_same_command_goes_on(command, stand_in):
    stand_in.broken.add(POINTS[1])
    with pytest.raises(
        SweepError,
        match=rf"(?s)1 of 5 points failed.*{POINTS[1]}: 03_train_fold failed: ValueError: broken",
    ):
        command()
    assert f"left out: {POINTS[1]}: not finished: 2 notebooks are whole" in command.printed
    assert len(pd.read_csv(comparison_file())) == 4
    assert states(command("--dry-run")) == dict.fromkeys(POINTS, "finished") | {
        POINTS[1]: "2 of 8 notebooks are whole"
    }
    stand_in.broken.clear()
    stand_in.executed.clear()
    text = command()
    assert len(stand_in.executed) == NOTEBOOKS - 2 and all(
        name.startswith(POINTS[1]) for name in stand_in.executed
    )
    assert text.count("finished before, reused") == 4 and len(pd.read_csv(comparison_file())) == 5


def test_a_sweep_that_was_stopped_goes_on_where_it_was(command, stand_in, monkeypatch):
    def stopped(name, archived, parameters, process=None):
        if len(stand_in.executed) == NOTEBOOKS + 5:
            raise KeyboardInterrupt
        stand_in.execute(name, archived, parameters, process)

    monkeypatch.setattr("vqa_utils.running.runner.fold_environments", lambda config, folds: [])
    with monkeypatch.context() as patch:
        patch.setattr("vqa_utils.running.runner.execute", stopped)
        with pytest.raises(KeyboardInterrupt):
            command()
    assert list(states(command("--dry-run")).values()) == [
        "finished",
        "5 of 8 notebooks are whole",
        "new",
        "new",
        "new",
    ]
    command()
    assert len(stand_in.executed) == len(set(stand_in.executed)) == 5 * NOTEBOOKS


def test_a_change_of_the_files_settings_makes_the_points_anew(command, stand_in):
    text = "data: DATA\nset: {n_folds: 2, learning_rate: 1e-3}\ngrid: {lora_r: [4, 8]}"
    other = text.replace("1e-3", "2e-3")
    command(text=text)
    assert set(states(command("--dry-run", text=other)).values()) == {"0 of 8 notebooks are whole"}
    command(text=other)
    assert (
        len(stand_in.executed) == 4 * NOTEBOOKS
        and read_json(RunPaths("little-lora_r=4").config)["learning_rate"] == 2e-3
    )
    assert set(states(command("--dry-run", text=other.replace("4, 8", "8, 4"))).values()) == {
        "finished"
    }
    command("--force", text=other)
    assert len(stand_in.executed) == 6 * NOTEBOOKS


def test_a_point_takes_over_what_another_has_trained_and_scored(command, stand_in):
    text = "data: DATA\nset: {n_folds: 2}\ngrid: {ensemble: [mean, vote]}\nalso: [{tta: 2}, {tta: 2, calibrate: false}, {lora_r: 4}]"
    stand_in.climbed.add("little-ensemble=mean")
    said = command(text=text)
    executed = {
        run_id: [name.split()[1] for name in stand_in.executed if name.startswith(run_id + " ")]
        for run_id in states(command("--dry-run", text=text))
    }
    combining = ["05_ensemble", "06_analysis"]
    assert len(executed["little-ensemble=mean"]) == len(executed["little-lora_r=4"]) == NOTEBOOKS
    assert executed["little-ensemble=vote"] == executed["little-tta=2-calibrate=false"] == combining
    assert sorted(executed["little-tta=2"]) == ["04_infer-fold0", "04_infer-fold1", *combining]
    first, second = (RunPaths(f"little-ensemble={how}") for how in ("mean", "vote"))
    for pattern in ("fold*/**/*", "stages/03*", "stages/04*", "folds.csv"):
        files = [
            path.relative_to(first.folder) for path in first.folder.glob(pattern) if path.is_file()
        ]
        assert files and all(
            (first.folder / file).read_bytes() == (second.folder / file).read_bytes()
            for file in files
        )
    assert read_json(second.fold(1).rungs), "what memory allowed is a part of the training"
    assert set(states(command("--dry-run", text=text)).values()) == {"finished"}
    table = pd.read_csv(comparison_file(), keep_default_na=False).set_index("run")
    assert (table["train_minutes"] == 3).all() and (table["notebook_minutes"] == 4).all()
    assert table["minutes_from"].to_dict() == {
        "little-ensemble=mean": "",
        "little-ensemble=vote": "little-ensemble=mean",
        "little-tta=2": "little-ensemble=mean",
        "little-tta=2-calibrate=false": "little-ensemble=mean little-tta=2",
        "little-lora_r=4": "",
    }
    assert said.count("took over notebooks of ") == said.count("taken over from ") == 3
    assert (
        "taken over from little-ensemble=mean: 01_eda, 02_folds, 03_train_fold-fold0, 03_train_fold-fold1, 04_infer-f"
        in said
    )
    assert re.search(r"03_train_fold-fold1 +│[^\n]* little-ensemble=mean", said), (
        "the table of times"
    )


def test_what_a_point_has_made_with_other_settings_is_set_aside_not_mixed(command, stand_in):
    text = "data: DATA\nset: {n_folds: 2}\ngrid: {ensemble: [mean, vote]}"
    command(text=text)
    other = text.replace("n_folds: 2", "n_folds: 2, epochs: 1")
    stand_in.executed.clear()
    command(text=other)
    assert len(stand_in.executed) == NOTEBOOKS + 2 and set(
        states(command("--dry-run", text=other)).values()
    ) == {"finished"}
    assert (
        len(list(RunPaths("little-ensemble=vote").folder.glob("replaced/*/fold0/meta.json"))) == 1
    )


def test_a_training_that_was_changed_since_is_not_taken_over(command, stand_in):
    text = "data: DATA\nset: {n_folds: 2}\ngrid: {ensemble: [mean]}"
    command(text=text)
    RunPaths("little-ensemble=mean").fold(1).train_log.write_text("step\nspoilt\n")
    said = command(text=text.replace("[mean]", "[vote, mean]"))
    assert (
        "taken over from little-ensemble=mean: 01_eda, 02_folds, 03_train_fold-fold0, 04_infer-fold0, 04_infer-fold1\n"
        in said
    )
    assert "little-ensemble=vote 03_train_fold-fold1" in stand_in.executed


def test_the_problems_of_all_points_are_told_before_the_first_starts(command, stand_in):
    with pytest.raises(SweepError) as found:
        command(
            text="set: {n_folds: 1}\ngrid: {lora_r: [8, 0]}\nalso: [{tta: 3, n_folds: 2}, {seed: 1.5, preset: none}]"
        )
    text = str(found.value)
    parts = re.split(r"\n  - (?=little)", text)
    assert parts[0].endswith("points that cannot run") and len(parts) == 5
    assert (
        parts[1].startswith("little-lora_r=8: ")
        and "n_folds" in parts[1]
        and "lora_r: expected" not in parts[1]
    )
    assert "n_folds" in parts[2] and "lora_r: expected at least 1, found 0" in parts[2]
    assert (
        parts[3].startswith("little-tta=3-n_folds=2")
        and "tta: expected 1, 2 or 4, found 3" in parts[3]
    )
    assert "seed: expected a whole number, found '1.5'" in parts[4]
    assert not stand_in.executed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid: [1", "expected YAML in UTF-8"),
        ("- 1", "expected `grid`, `also` or both"),
        ("preset: demo", "expected `grid`, `also` or both"),
        ("gird: {}\nset: 1\ngrid: {seed: [1]}", r"(?s)gird: expected one of preset, .*set: expected settings, found 1"),
        ("grid: {seed: 1, tta: []}\nalso: [2]", r"(?s)seed: expected a list of values, found 1.*tta: .*also: expected settings, found 2"),
        ("set: {lora_rr: 1}\ngrid: {seeed: [1], model: [null]}",
         r"(?s)lora_rr: expected a setting's name.*seeed: expected a setting's name.*model: expected a value, found None"),
        ("grid: {seed: [1, 1]}", "little-seed=1: expected one point of that name, found another"),
        ("grid: {model: [" + "m" * 200 + "]}", "expected 200 letters at most"),
        ("grid: {preset: [saef]}", "little-preset=saef: preset: expected one of safe"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(sweep, text, expected):
    with pytest.raises(SweepError, match=expected):
        read_points(sweep(text), [])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SweepError, match=r"none\.yaml: expected a sweep's file, found none"):
        read_points(tmp_path / "none.yaml", [])


def test_a_machine_that_cannot_run_a_point_is_told_at_once(command, stand_in, monkeypatch):
    monkeypatch.setattr("vqa_utils.experiments.sweep.find_gpus", list)
    text = "data: DATA\ngrid: {preset: [demo, safe, balanced]}"
    with pytest.raises(
        SweepError,
        match=r"(?s)points that cannot run here\n  - little-preset=safe: .*GPU.*\n  - little-preset=bal",
    ):
        command(text=text)
    assert not stand_in.executed
    assert len(states(command("--dry-run", text=text))) == 3


def test_a_refit_is_taken_over_too(command, stand_in):
    command(text="data: DATA\nset: {n_folds: 2, refit: true}\ngrid: {ensemble: [mean, vote]}")
    executed = [
        name.split()[1] for name in stand_in.executed if name.startswith("little-ensemble=vote ")
    ]
    assert executed == ["05_ensemble", "06_analysis"]

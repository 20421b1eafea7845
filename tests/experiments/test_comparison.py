"""Small finished runs, whose answers are known, side by side."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from korean_challenge import write_korean_challenge

from run_all import STAGES
from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import ROOT, RunPaths, comparison_file, runs_dir
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import parse_settings, to_dict
from vqa_utils.data.challenge import load_challenge
from vqa_utils.errors import RunError
from vqa_utils.experiments.comparison import (
    compare_runs,
    comparison,
    describe_comparison,
    read_scored,
)
from vqa_utils.metrics import accuracy_interval
from vqa_utils.presets import PRESETS, differences, preset
from vqa_utils.running.resolution import start_run
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import select_steps
from vqa_utils.setting_types import setting_text

pytestmark = pytest.mark.slow


@pytest.fixture
def finished(stand_in, korean_folder, console):
    """Makes a run of two folds, all of it or its first steps."""

    def run(run_id, steps=None, **changes):
        config = preset("demo", **{"data": str(korean_folder), "n_folds": 2, **changes})
        paths = RunPaths(run_id)
        start_run(paths, config)
        Runner(paths, config, console, reuse=True).run(
            select_steps(STAGES, config.fold_numbers)[:steps]
        )
        return paths

    return run


def printed(console, *run_ids):
    before = len(console.file.getvalue())
    compare_runs(console, run_ids)
    return console.file.getvalue()[before:]


def test_the_best_run_comes_first_and_the_others_are_judged_against_it(finished, stand_in):
    stand_in.right |= {"half": 2, "all": 4, "unsure": 2}
    stand_in.certainty["unsure"] = 0.5
    stand_in.climbed.add("all")
    finished("half", seed=7)  # other folds: its rows come in another order
    finished("all", lora_r=4)
    finished("unsure")
    table = comparison([read_scored(run_id) for run_id in ("half", "all", "unsure")])
    assert table["run"].tolist() == ["all", "unsure", "half"], "by accuracy, then by log loss"
    assert table["accuracy"].tolist() == [1.0, 0.5, 0.5] and table["rows"].tolist() == [24] * 3
    assert table["settings"].tolist() == ["lora_r=4 n_folds=2", "n_folds=2", "n_folds=2 seed=7"]
    assert table["log_loss"][0] == pytest.approx(-np.log(0.7))
    assert table["calibration_error"].tolist() == pytest.approx([0.3, 0.0, 0.2])
    twelve_wrong = 2 / 2**12  # McNemar's p if all 12 differences favour one side
    assert np.isnan(table["mcnemar_p"][0])
    assert table["mcnemar_p"][1:].tolist() == pytest.approx([twelve_wrong] * 2)
    assert (table["low"][1], table["high"][1]) == accuracy_interval(np.arange(24) < 12)
    assert table["train_minutes"].tolist() == [3.0] * 3
    assert table["notebook_minutes"].tolist() == [4.0] * 3
    assert table["peak_gib"].tolist() == [3.0] * 3 and table["rungs"].tolist() == [1, 0, 0]
    assert describe_comparison(table).endswith(": unsure, half, of 2.")
    assert describe_comparison(table.iloc[:1]).startswith("all is alone")


def test_calibrated_scores_stand_in_brackets_beside_those_before(finished, stand_in, console):
    stand_in.right |= {"plain": 2, "calibrated": 2}
    stand_in.calibrated["calibrated"] = 0.5
    finished("plain")
    finished("calibrated", seed=7)  # other folds: its rows come in another order than in ensemble/
    text = printed(console)
    table = pd.read_csv(comparison_file()).set_index("run")
    assert table["calibration_error"].tolist() == pytest.approx([0.2, 0.2])
    assert table["calibration_error_calibrated"]["calibrated"] == pytest.approx(0)
    assert table["log_loss_calibrated"]["calibrated"] == pytest.approx(
        -(np.log(0.5) + np.log(0.5 / 3)) / 2
    )
    assert table.loc["plain", ["log_loss_calibrated", "calibration_error_calibrated"]].isna().all()
    before = -(np.log(0.7) + np.log(0.1)) / 2
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 5}
    assert f"│ {before:.3f} (1.242)" in lines["calibrated"]
    assert "│ 0.200 (0.000)" in lines["calibrated"]
    assert f"│ {before:.3f} " in lines["plain"]
    assert "(0" not in lines["plain"].split(f"{before:.3f}")[1]


def test_rows_are_paired_by_id_whatever_the_folds(finished, stand_in):
    finished("first")
    finished("other-folds", seed=7)
    first = read_scored("first")
    second = read_scored("other-folds")
    assert first.paths.folds.read_text() != second.paths.folds.read_text()
    assert (first.right == second.right).all()
    assert comparison([first, second])["mcnemar_p"].tolist()[1] == 1.0


def test_runs_on_other_rows_or_answers_are_compared_among_themselves(
    finished, stand_in, tmp_path, console
):
    other = write_korean_challenge(tmp_path / "other")
    answers = pd.read_csv(other / "train.csv").assign(
        answer=lambda rows: rows["answer"].map(dict(zip("abcd", "bcda", strict=True)))
    )
    answers.to_csv(other / "train.csv", index=False)
    stand_in.right |= {"best": 4, "limited": 4}
    for run_id, changes in {
        "one": {},
        "best": {},
        "limited": {"limit": 20},
        "others": {"data": str(other)},
    }.items():
        finished(run_id, **changes)
    text = printed(console)
    table = pd.read_csv(comparison_file()).set_index("run")
    assert table["rows_hash"].nunique() == 3
    assert table["rows_hash"]["one"] == table["rows_hash"]["best"]
    assert table["mcnemar_p"].isna().to_dict() == {
        "best": True,
        "one": False,
        "limited": True,
        "others": True,
    }
    captions = re.findall(r"(\d+) out-of-fold rows of (\S+);", text)
    assert sorted(rows for rows, _ in captions) == ["20", "24", "24"]
    assert str(other) in [data for _, data in captions]
    assert "limited is alone" in text
    assert re.search(r"Behind best .*: none, of 1\.", text)


def test_unfinished_runs_are_left_out_with_the_reason(finished, console, korean_folder, tmp_path):
    finished("whole")
    finished("early", steps=3)
    half = finished("half")
    (half.fold(1).probs("test")).unlink()
    changed = finished("changed")
    write_json(changed.config, to_dict(preset("demo", data=str(korean_folder), n_folds=2, tta=4)))
    old = finished("old")
    write_json(old.config, {"preset": "demo"})
    moved = write_korean_challenge(tmp_path / "moved")
    finished("moved", data=str(moved))
    (moved / "train.csv").write_text((moved / "train.csv").read_text() + "\n")
    text = printed(console)
    assert pd.read_csv(comparison_file())["run"].tolist() == ["whole"]
    reasons = dict(re.findall(r"left out: (\S+): (.*)", text))
    assert set(reasons) == {"early", "half", "changed", "old", "moved"}
    assert re.search(r"\b3 notebooks.* 05_ensemble", reasons["early"])
    assert reasons["half"] == reasons["changed"] and "05_ensemble" in reasons["half"]
    assert reasons["old"].startswith(f"{old.config}: ") and "accumulation" in reasons["old"]
    assert str(moved) in reasons["moved"]


def test_an_ensemble_of_some_folds_is_not_finished(finished, console):
    paths = finished("one-fold")
    (paths.fold(1).probs("test")).unlink()
    runner = Runner(paths, open_run("one-fold")[1], console, reuse=True)
    runner.run([step for step in select_steps(STAGES, (0, 1)) if step.name == "05_ensemble"])
    assert re.search(r"left out: one-fold: .*: fold 1$", printed(console), re.MULTILINE)


def test_named_runs_alone_are_compared(finished, console):
    for run_id in ("one", "two", "three"):
        finished(run_id)
    text = printed(console, "one", "latest")
    assert pd.read_csv(comparison_file())["run"].tolist() == ["one", "three"]
    assert "two" not in text
    with pytest.raises(RunError, match="'nowhere', 'neither'"):
        compare_runs(console, ["one", "nowhere", "neither"])


def test_without_runs_there_is_no_table(stand_in, console):
    assert str(runs_dir()) in printed(console).replace("\n", "")
    assert not comparison_file().exists()


def test_a_setting_that_differs_from_its_preset_is_named():
    assert differences(preset("safe", data="some/where")) == {}
    assert differences(preset("safe", seed=1, max_memory=("12GB",))) == {
        "max_memory": ("12GB",),
        "seed": 1,
    }
    resolve_batches = dataclasses.replace(preset("safe").with_micro_batch(4), score_batch=32)
    assert differences(resolve_batches) == {}, "the preset says auto, and a step has its rows"
    measured = {"text_tokens": 90, "longest_text": 700, "longest_test": 80, "model_dir": "there"}
    assert differences(dataclasses.replace(resolve_batches, folds_at_once=2, **measured)) == {}
    assert differences(dataclasses.replace(resolve_batches, accumulation=8)) == {
        "micro_batch": 4,
        "accumulation": 8,
    }


@pytest.mark.parametrize("name", PRESETS)
def test_the_text_of_a_setting_is_read_as_the_same_value(name):
    values = dataclasses.asdict(preset(name, learning_rate=5e-5, epochs=0.25))
    assert parse_settings(f"{key}={setting_text(value)}" for key, value in values.items()) == values
    assert [setting_text(value) for value in (2.0, 5e-5, True, ("14GB", "13GB"), "auto")] == [
        "2",
        "5e-05",
        "true",
        "14GB,13GB",
        "auto",
    ]


def test_switches_are_judged_against_the_same_seeds_without_them(
    finished, stand_in, korean_folder, monkeypatch
):
    monkeypatch.syspath_prepend(ROOT / "tests/bench")
    from switches import switches

    runs = {
        "one": {"seed": 1},
        "two": {"seed": 2},
        "one-tta": {"seed": 1, "tta": 4},
        "two-tta": {"seed": 2, "tta": 4},
    }
    for run_id, right in zip(runs, (2, 3, 4, 3), strict=True):
        stand_in.right[run_id] = right
        finished(run_id, **runs[run_id])
    train = load_challenge(preset("demo", data=str(korean_folder))).train
    pictures = pd.Series(train["path"].to_numpy(), train["id"])
    with pytest.raises(SystemExit, match="with the same seeds, found"):
        switches(["one", "two", "one-tta"], pictures)
    table = switches(list(runs), pictures).set_index("switch")
    assert (
        sorted(table.index) == ["none", "tta=4"]
        and table.loc["tta=4", "accuracy by seed"] == "1.000 0.750"
    )
    assert (
        table["accuracy"].tolist() == [0.625, 0.875]
        and table.loc["tta=4", "accuracy change"] == 0.25
    )
    assert table.loc["tta=4", "p (accuracy)"] < 0.05 < table.loc["none", "p (accuracy)"]
    assert table.loc["tta=4", "log loss change"] < 0

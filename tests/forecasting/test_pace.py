"""What is left of a run, by the seconds that were measured in it."""

import dataclasses
import os

import pandas as pd
import pytest
from measured_runs import ROWS, SETTINGS, archive, log_steps, trained

from vqa_utils.artifacts.files import write_csv, write_text
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.forecasting.pace import (
    FoldLog,
    Pace,
    ending_seconds,
    fold_log,
    pace_of,
    scoring_seconds,
)


@pytest.fixture
def config():
    return SETTINGS


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    return RunPaths("r")


def test_a_pace_is_known_after_three_steps(paths, config):
    log_steps(paths, 0, 2)
    assert pace_of(paths, config) is None
    log_steps(paths, 0, 3)
    assert pace_of(paths, config).step == 2
    log_steps(paths, 1, 3, seconds=3.0)
    assert pace_of(paths, config).step == 3, "the slowest counts"


@pytest.mark.parametrize("text", ["", "step\n", "step,max_steps,seconds_per_step\n1,x\n", "\0"])
def test_a_torn_log_has_no_pace(paths, config, text):
    write_text(paths.fold(0).train_log, text)
    assert pace_of(paths, config) is None


def test_a_trained_fold_tells_the_seconds_of_a_start_and_of_a_row(paths, config):
    trained(paths, 0)
    assert pace_of(paths, config) == Pace(start=60, step=2, row=0.05)


@pytest.mark.parametrize(
    ("changes", "row_passes"),
    [
        ({}, 300 + 400),
        ({"baselines": True}, 3 * 300 + 400),
        ({"tta": 4}, 1.5 * 700),
        ({"tta": 4, "model": "no/such"}, 4 * 700),
    ],
)
def test_scoring_takes_a_start_and_the_passes_of_its_rows(config, changes, row_passes):
    config = dataclasses.replace(config, **changes)
    assert scoring_seconds(config, ROWS, Pace(60, 2, 0.05)) == pytest.approx(60 + 0.05 * row_passes)


def test_the_last_notebooks_are_expected_as_the_first_ones_until_they_have_run(paths):
    assert ending_seconds(paths) == 60
    archive(paths, "01_eda", 20)
    archive(paths, "02_folds", 10)
    archive(paths, "05_ensemble", None)  # it is just being executed
    assert ending_seconds(paths) == 30
    archive(paths, "05_ensemble", 7)
    assert ending_seconds(paths) == 7


def test_the_pace_of_this_command_counts_once_it_is_known(paths, config):
    """An earlier session may have had another machine."""
    trained(paths, 0)
    log_steps(paths, 0, 100, ended=100)
    os.utime(paths.fold(0).meta, (100, 100))
    assert pace_of(paths, config, since=200) == Pace(60, 2, 0.05), "nothing else is known"
    log_steps(paths, 1, 10, seconds=0.5)
    assert pace_of(paths, config, since=200).step == 0.5


def test_a_training_that_goes_on_has_the_pace_of_its_new_steps(paths):
    """Its log keeps the steps before."""
    log = paths.fold(0).train_log
    log_steps(paths, 0, 50, seconds=10, ended=100)
    earlier = pd.read_csv(log)
    new = earlier.tail(3).assign(step=[51, 52, 53], seconds_per_step=1.0, ended=300)
    write_csv(log, pd.concat([earlier, new.head(2)]))
    assert fold_log(log, since=200) is None, "two steps are no pace yet"
    write_csv(log, pd.concat([earlier, new]))
    assert fold_log(log, since=200) == FoldLog(53, 100, 1.0)

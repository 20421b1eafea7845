"""Notebooks at work that stand still, and a disk that is nearly full."""

import os

import pandas as pd
import pytest

from vqa_utils.artifacts.files import write_csv
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.stop import STEP, TRAINING, VARIABLE, must_stop
from vqa_utils.presets import preset
from vqa_utils.running.notebooks.progress import Progress
from vqa_utils.running.stages import TRAINING as TRAIN
from vqa_utils.running.stages import Step


@pytest.fixture
def config():
    return preset("demo", micro_batch=8, accumulation=2)


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "stop"))
    return RunPaths("r")


def test_a_step_without_progress_is_named_once(paths, config, console, monkeypatch, tmp_path):
    monkeypatch.setattr("vqa_utils.running.notebooks.progress.time.time", lambda: 1000.0)
    one = Progress(paths, config, console, stall_seconds=60)
    archived = paths.notebooks / "03_train_fold-fold1.ipynb"
    log = pd.DataFrame({"step": range(1, 41), "max_steps": 100, "seconds_per_step": 2.0})
    log["ended"] = 1000.0
    write_csv(paths.fold(1).train_log, log)
    with one.working(Step(TRAIN, 1), archived):
        one.look(1060)
        assert console.file.getvalue() == ""
        for now in (1061, 1062):
            one.look(now)
        (line,) = console.file.getvalue().splitlines()
        assert "03_train_fold-fold1 (at step 40 of 100)" in line and " 61 s" in line

        archived.parent.mkdir()
        archived.touch()  # a cell has ended
        os.utime(archived, (1100, 1100))
        one.look(1150)
        monkeypatch.setenv(STEP, "03_train_fold-fold1")
        must_stop(TRAINING)  # a step of the training has ended
        os.utime(f"{tmp_path / 'stop'}@03_train_fold-fold1", (1200, 1200))
        one.look(1250)
        assert len(console.file.getvalue().splitlines()) == 1
        one.look(1261)
        assert len(console.file.getvalue().splitlines()) == 2
    one.look(5000)
    assert len(console.file.getvalue().splitlines()) == 2


def test_a_disk_without_room_for_a_checkpoint_is_named_once(paths, config, console, monkeypatch):
    one = Progress(paths, config, console, stall_seconds=60)
    free = []
    monkeypatch.setattr("vqa_utils.running.notebooks.progress.free_bytes", lambda paths: free[-1])
    with one.working(Step(TRAIN, 1), paths.notebooks / "03_train_fold-fold1.ipynb"):
        free.append(10**9)
        one.look(1.0)
        assert console.file.getvalue() == ""
        free.append(500_000)
        for now in (2.0, 3.0):
            one.look(now)
    (line,) = console.file.getvalue().splitlines()
    assert f"{one._least_free / 10**6:.1f} MB" in line

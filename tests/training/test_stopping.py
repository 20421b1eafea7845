"""A training that its run asks to stop, and that goes on later."""

import dataclasses

import pandas as pd
import pytest
from bases import base_with_lora
from workers import terminate_workers

from vqa_utils.artifacts.files import sha256
from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.artifacts.stop import VARIABLE, StopRequested, asked_by
from vqa_utils.training._checkpoints import Checkpoints
from vqa_utils.training.fold import train_fold

pytestmark = pytest.mark.slow


@pytest.fixture
def stop_at(tmp_path, monkeypatch):
    """Asks the run to stop at a step; None takes that back."""
    file = tmp_path / "stop"
    monkeypatch.setenv(VARIABLE, str(file))
    on_step_end = Checkpoints.on_step_end

    def at(step):
        file.unlink(missing_ok=True)

        def asked(self, args, state, control, **kwargs):
            if state.global_step == step:
                file.write_text("15")
            on_step_end(self, args, state, control, **kwargs)

        monkeypatch.setattr(Checkpoints, "on_step_end", asked)

    return at


def test_the_processes_that_decode_live_on_when_all_are_told_to_end(
    config, encoder, challenge, tmp_path, stop_at, monkeypatch
):
    """torch has its workers die of SIGTERM, and then the step whose rows they have does not end."""
    config = dataclasses.replace(config, micro_batch=2, num_workers=2)
    rows = challenge.train.head(12), challenge.train.tail(4)
    paths = FoldPaths(tmp_path / "fold0")
    stop_at(3)
    on_step_end = Checkpoints.on_step_end

    def told(self, args, state, control, **kwargs):
        assert terminate_workers() >= 2
        on_step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(Checkpoints, "on_step_end", told)
    with pytest.raises(StopRequested):
        train_fold(base_with_lora(config), config, encoder, *rows, paths)
    assert list(paths.checkpoints.glob("*/checkpoint-3"))


def test_a_run_that_was_asked_to_stop_while_the_base_loaded_trains_nothing(
    config, encoder, challenge, tmp_path, monkeypatch
):
    (tmp_path / "stop").write_text("15")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "stop"))
    paths = FoldPaths(tmp_path / "fold0")
    with pytest.raises(StopRequested):
        train_fold(
            base_with_lora(config),
            config,
            encoder,
            challenge.train.head(4),
            challenge.train.tail(4),
            paths,
        )
    assert not paths.folder.exists()


@pytest.mark.parametrize("steps", [(1, 2, 5), (4,)])
def test_a_training_that_was_asked_to_stop_goes_on_as_if_it_had_not_been(
    config, encoder, challenge, tmp_path, stop_at, steps
):
    """At any step of an epoch of three but its last."""
    config = dataclasses.replace(
        config, epochs=2, lora_dropout=0.1, shuffle_options=True, micro_batch=2, accumulation=2
    )
    rows = challenge.train.head(12), challenge.train.tail(4)
    whole, stopped = FoldPaths(tmp_path / "whole"), FoldPaths(tmp_path / "stopped")
    meta = train_fold(base_with_lora(config), config, encoder, *rows, whole)
    assert meta["steps"] == 6

    for step in steps:
        stop_at(step)
        with pytest.raises(StopRequested, match="--resume"):
            train_fold(base_with_lora(config), config, encoder, *rows, stopped)
        assert pd.read_csv(stopped.train_log)["step"].max() == step and not stopped.meta.exists()
    stop_at(None)
    found = train_fold(base_with_lora(config), config, encoder, *rows, stopped)
    assert found["epochs"] == meta["epochs"]
    assert sha256(stopped.adapter) == sha256(whole.adapter)
    losses = [pd.read_csv(paths.train_log)["loss"].tolist() for paths in (stopped, whole)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("step", [3, 6])
def test_a_training_that_stops_while_held_out_rows_are_scored_has_lost_one_step(
    config, encoder, challenge, tmp_path, stop_at, step
):
    """After an epoch of three steps, and after the last."""
    config = dataclasses.replace(config, epochs=2, lora_dropout=0.1, micro_batch=4)
    rows = challenge.train.head(12), challenge.train.tail(4)
    whole, stopped = FoldPaths(tmp_path / "whole"), FoldPaths(tmp_path / "stopped")
    meta = train_fold(base_with_lora(config), config, encoder, *rows, whole)
    assert meta["steps"] == 6

    stop_at(step)
    with pytest.raises(StopRequested):
        train_fold(base_with_lora(config), config, encoder, *rows, stopped)
    assert {path.name for path in stopped.checkpoints.glob("*/checkpoint-*")} >= {
        f"checkpoint-{step - 1}"
    }
    stop_at(None)
    found = train_fold(base_with_lora(config), config, encoder, *rows, stopped)
    assert found["epochs"] == meta["epochs"]
    assert sha256(stopped.adapter) == sha256(whole.adapter)


def test_a_training_that_is_asked_to_stop_after_all_else_is_written_whole(
    config, encoder, challenge, tmp_path, monkeypatch
):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "stop"))
    config = dataclasses.replace(config, micro_batch=4)
    on_save = Checkpoints.on_save

    def asked(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            (tmp_path / "stop").write_text("15")
        on_save(self, args, state, control, **kwargs)

    monkeypatch.setattr(Checkpoints, "on_save", asked)
    paths = FoldPaths(tmp_path / "fold0")
    rows = challenge.train.head(8), challenge.train.tail(4)
    train_fold(base_with_lora(config), config, encoder, *rows, paths)
    assert asked_by() and paths.meta.exists()

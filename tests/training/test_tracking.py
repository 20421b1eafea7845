"""Trackers are told of a training."""

import dataclasses

import pandas as pd
import pytest
from bases import base_with_lora
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.training.fold import train_fold

pytestmark = pytest.mark.slow


def test_trackers_are_told_of_each_step_and_of_the_kept_epoch(config, encoder, challenge, tmp_path):
    config = dataclasses.replace(config, report_to=("tensorboard",))
    paths = FoldPaths(tmp_path / "r" / "fold0")
    train, held_out = challenge.train.head(16), challenge.train.tail(8)
    meta = train_fold(base_with_lora(config), config, encoder, train, held_out, paths)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "r" / "fold0")).Reload()
    log = pd.read_csv(paths.train_log)
    losses = [event.value for event in events.Scalars("training/loss")]
    assert losses == pytest.approx(log["loss"].tolist()) and len(losses) == meta["steps"]
    (kept,) = events.Scalars("kept epoch/log_loss")
    (judged,) = events.Scalars("held out/log_loss")
    assert kept.value == judged.value == pytest.approx(meta["epochs"][0]["log_loss"])

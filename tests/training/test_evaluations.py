"""Evaluations within epochs, a training that ends early, and the refit after it."""

import dataclasses

import pandas as pd
import pytest
from bases import base_with_lora

from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.metrics import log_loss
from vqa_utils.model.adapter import load_adapter
from vqa_utils.scoring.options import ScoringSettings, score_options
from vqa_utils.training._callbacks import TrainingError
from vqa_utils.training._checkpoints import Checkpoints
from vqa_utils.training.fold import describe_epochs, train_fold

pytestmark = pytest.mark.slow


class Killed(Exception):
    pass


@pytest.fixture
def rows(challenge):
    return challenge.train.head(16), challenge.train.tail(8)


@pytest.fixture
def often(config):
    """Two epochs of four steps, and an evaluation after every other one."""
    return dataclasses.replace(
        config, epochs=2, eval_every=0.5, lora_dropout=0.1, micro_batch=2, accumulation=2
    )


@pytest.fixture
def worse(often):
    """Six epochs of one step on few rows at a high rate: after the first, the others get worse."""
    return dataclasses.replace(often, epochs=6, eval_every=1.0, learning_rate=3e-2, patience=2)


def trained(config, encoder, rows, paths):
    return train_fold(base_with_lora(config), config, encoder, *rows, paths)


@pytest.fixture
def kill_after(monkeypatch):
    """Kills a training once it has saved a step."""
    on_save = Checkpoints.on_save

    def after(step):
        def killed(self, args, state, control, **kwargs):
            on_save(self, args, state, control, **kwargs)
            if state.global_step == step:
                raise Killed

        monkeypatch.setattr(Checkpoints, "on_save", killed)

    return after


@pytest.mark.parametrize(("every", "steps"), [(0.5, [2, 4, 6, 8]), (0.4, [2, 4, 5, 7, 8])])
def test_rows_are_scored_at_each_fraction_and_at_the_end_of_an_epoch(
    often, encoder, rows, tmp_path, every, steps
):
    config = dataclasses.replace(often, eval_every=every)
    meta = trained(config, encoder, rows, FoldPaths(tmp_path / "fold0"))
    assert [scores["step"] for scores in meta["epochs"]] == steps
    assert [scores["epoch"] for scores in meta["epochs"]] == [step / 4 for step in steps]
    assert meta["steps"] == meta["planned_steps"] == 8


def test_the_best_adapter_within_an_epoch_is_kept(often, encoder, rows, tmp_path):
    config = dataclasses.replace(often, learning_rate=3e-2, lora_dropout=0.0)
    meta = trained(config, encoder, rows, FoldPaths(tmp_path / "fold0"))
    best = min(meta["epochs"], key=lambda scores: scores["log_loss"])
    assert meta["best_step"] == best["step"] != 8 and meta["best_epoch"] == best["epoch"]
    model, _, _ = load_adapter(tmp_path / "fold0" / "adapter", config)
    probs = score_options(model, encoder, rows[1], ScoringSettings(batch_size=8))
    assert log_loss(probs, rows[1]["answer"]) == pytest.approx(best["log_loss"], abs=1e-3)


def ends_as(meta, train, kill_after, step):
    """Kill a training once it has saved a step; it goes on to the result of the whole one."""
    kill_after(step)
    with pytest.raises(Killed):
        train()
    kill_after(None)
    found = train()
    assert found["epochs"] == meta["epochs"]
    assert found["adapter_sha256"] == meta["adapter_sha256"]


@pytest.mark.parametrize("step", [1, 6])
def test_a_training_that_is_killed_ends_as_the_whole_one(
    often, encoder, rows, tmp_path, kill_after, step
):
    """Before an evaluation within an epoch, and after it."""
    whole, killed = FoldPaths(tmp_path / "whole"), FoldPaths(tmp_path / "killed")
    meta = trained(often, encoder, rows, whole)
    ends_as(meta, lambda: trained(often, encoder, rows, killed), kill_after, step)
    losses = [pd.read_csv(paths.train_log)["loss"].tolist() for paths in (killed, whole)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("every", [1.0, 0.5])
def test_patience_ends_a_training_that_gets_no_better(
    worse, encoder, challenge, tmp_path, kill_after, every
):
    config = dataclasses.replace(worse, eval_every=every)
    rows = challenge.train.head(8), challenge.train.tail(8)
    whole, killed = FoldPaths(tmp_path / "whole"), FoldPaths(tmp_path / "killed")
    meta = trained(config, encoder, rows, whole)
    losses = [scores["log_loss"] for scores in meta["epochs"]]
    assert len(losses) - 1 - losses.index(min(losses)) == 2, "two evaluations after the best one"
    assert meta["steps"] == meta["epochs"][-1]["step"] < meta["planned_steps"] == 12
    assert len({scores["step"] for scores in meta["epochs"]}) == len(losses), "none twice"
    assert f"It ended after {meta['steps']} of 12 steps" in describe_epochs(meta)

    last_saved = meta["steps"] - 1
    ends_as(meta, lambda: trained(config, encoder, rows, killed), kill_after, last_saved)


def test_a_refit_trains_for_the_mean_of_the_best_steps(often, encoder, challenge, tmp_path):
    config = dataclasses.replace(often, n_folds=2, refit=True)
    rows = challenge.train.head(16), challenge.train.head(0)
    paths = FoldPaths(tmp_path / "fold2")
    with pytest.raises(TrainingError, match="found none of fold0, fold1"):
        trained(config, encoder, rows, paths)
    for number, step in enumerate((4, 7)):
        write_json(paths.beside(number).meta, {"best_step": step})
    meta = trained(config, encoder, rows, paths)
    assert meta["steps"] == meta["planned_steps"] == 6 and meta["best_step"] is None
    rate = pd.read_csv(paths.train_log)["learning_rate"]
    assert rate.iloc[-1] < 0.2 * rate.max(), "its cosine ends there"

    plain = dataclasses.replace(config, eval_every=1.0)
    assert trained(plain, encoder, rows, FoldPaths(tmp_path / "plain"))["steps"] == 8

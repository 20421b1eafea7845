import dataclasses
from types import SimpleNamespace

import bitsandbytes as bnb
import numpy as np
import pandas as pd
import pytest
import torch
from bases import base_with_lora
from safetensors.torch import load_file
from transformers import TrainerCallback

from vqa_utils.artifacts.files import read_json, sha256
from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.metrics import log_loss
from vqa_utils.model.adapter import load_adapter
from vqa_utils.scoring.options import ScoringSettings, score_options
from vqa_utils.training import _trainer, fold
from vqa_utils.training._callbacks import LOG_COLUMNS, NonFiniteGuard, TrainingError
from vqa_utils.training.fold import train_fold

pytestmark = pytest.mark.slow


def fresh(config):
    return base_with_lora(config)


def weights(paths):
    return load_file(paths.adapter / "adapter_model.safetensors")


@pytest.fixture
def watch(monkeypatch):
    """Adds a callback to the Trainer of the next folds, in place of the one watched before."""
    make_trainer = fold.make_trainer

    def add(callback):
        def watched(*given):
            trainer = make_trainer(*given)
            trainer.add_callback(callback)
            return trainer

        monkeypatch.setattr(fold, "make_trainer", watched)

    return add


class KeepsGradients(TrainerCallback):
    """Keeps the gradients of each step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        gradients = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gradients[name] = parameter.grad.clone()
        self.steps.append(gradients)


class StopsAfter(TrainerCallback):
    """Ends a training as Ctrl-C does, once the checkpoint of an epoch is written."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_save(self, args, state, control, **kwargs):
        if state.epoch == self.epochs:
            raise KeyboardInterrupt


class CountsSteps(TrainerCallback):
    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def with_b(model):
    """A model whose LoRA A has gradients from the first step on, since B is not zero."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def longest_first(lengths):
    return lengths == sorted(lengths, reverse=True)


def test_micro_batches_of_like_length_train_the_same_adapter(
    config, encoder, challenge, tmp_path, monkeypatch, watch
):
    more = [" 자세히 보세요." * (i * 7 % 5) for i in range(len(challenge.train))]
    rows = challenge.train.assign(question=challenge.train["question"] + more)
    train, held_out = rows.head(12), rows.tail(4)
    lengths = []  # of the rows as they are encoded, in tokens
    examples = encoder.examples

    def watched(batch_rows):
        batch = examples(batch_rows)
        lengths.extend(batch["attention_mask"].sum(1).tolist())
        return batch

    monkeypatch.setattr(encoder, "examples", watched)
    results = []
    for micro_batch, accumulation in ((8, 1), (4, 2), (1, 8)):
        settings = dataclasses.replace(
            config,
            micro_batch=micro_batch,
            accumulation=accumulation,
            learning_rate=1e-3,
            score_batch=2,
        )
        paths = FoldPaths(tmp_path / f"{micro_batch}x{accumulation}")
        kept = KeepsGradients()
        watch(kept)
        lengths.clear()
        train_fold(with_b(fresh(settings)), settings, encoder, train, held_out, paths)
        results.append(
            SimpleNamespace(
                losses=pd.read_csv(paths.train_log)["loss"],
                gradients=kept.steps,
                adapter=weights(paths),
                trained=lengths[:12],
                held_out=lengths[12:],
            )
        )

    one_pass, *others = results
    for found in others:
        np.testing.assert_allclose(found.losses, one_pass.losses, atol=1e-5)
        assert len(found.gradients) == 2  # of 8 and of 4 rows
        for step, expected in zip(found.gradients, one_pass.gradients, strict=True):
            torch.testing.assert_close(step, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.adapter, one_pass.adapter, atol=2e-4, rtol=0)

        assert longest_first(found.trained[:8])
        assert longest_first(found.trained[8:])
    for found in results:
        assert longest_first(found.held_out)


def test_a_fold_writes_its_log_its_scores_and_its_best_epoch(config, encoder, challenge, tmp_path):
    config = dataclasses.replace(config, epochs=2)
    paths = FoldPaths(tmp_path / "fold0")
    train, held_out = challenge.train.head(8), challenge.train.tail(8)
    meta = train_fold(fresh(config), config, encoder, train, held_out, paths)

    log = pd.read_csv(paths.train_log)
    assert list(log) == LOG_COLUMNS
    assert log["step"].tolist() == [1, 2, 3, 4]  # two epochs of two steps of four rows
    assert log["max_steps"].unique() == [4]
    assert log[["loss", "grad_norm", "seconds_per_step", "memory_gib"]].notna().all().all()
    assert log["learning_rate"].iloc[-1] < log["learning_rate"].max() == config.learning_rate

    assert 0 < meta["seconds_per_held_out_row"] < meta["seconds"]
    assert [scores["epoch"] for scores in meta["epochs"]] == [1, 2]
    best = min(meta["epochs"], key=lambda scores: scores["log_loss"])
    assert meta["best_epoch"] == best["epoch"]
    assert read_json(paths.meta) == meta
    assert not list(paths.checkpoints.glob("*")), "optimizer states are left behind"


def test_the_adapter_that_is_kept_is_the_best_epochs(config, encoder, challenge, tmp_path):
    # Few rows repeated at a high rate: the second and third epoch only make the others worse
    config = dataclasses.replace(config, epochs=3, learning_rate=3e-2)
    paths = FoldPaths(tmp_path / "fold0")
    train, held_out = challenge.train.head(4), challenge.train.tail(8)
    meta = train_fold(fresh(config), config, encoder, train, held_out, paths)
    losses = [scores["log_loss"] for scores in meta["epochs"]]
    assert losses[-1] > min(losses) + 0.01

    model, _, _ = load_adapter(tmp_path / "fold0" / "adapter", config)
    probs = score_options(model, encoder, held_out, ScoringSettings(batch_size=8))
    assert log_loss(probs, held_out["answer"]) == pytest.approx(min(losses), abs=1e-3)


def test_bitsandbytes_optimizer_trains_as_torchs(config, encoder, challenge, tmp_path, monkeypatch):
    """`use_cpu_offload` takes it, and autograd sees nothing of its steps.

    The state that it keeps in host memory is left out here.
    """
    config = dataclasses.replace(config, epochs=2, learning_rate=1e-2)
    train, held_out = challenge.train.head(8), challenge.train.tail(8)

    def losses(name):
        paths = FoldPaths(tmp_path / name)
        meta = train_fold(fresh(config), config, encoder, train, held_out, paths)
        return [scores["log_loss"] for scores in meta["epochs"]]

    torchs = losses("torch")

    def create_optimizer(self, model=None):
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = bnb.optim.AdamW(
            learning, lr=config.learning_rate, weight_decay=0.0, optim_bits=32
        )
        return self.optimizer

    monkeypatch.setattr(_trainer.StepTrainer, "create_optimizer", create_optimizer)
    assert losses("bitsandbytes") == pytest.approx(torchs, rel=1e-3)
    assert abs(torchs[1] - torchs[0]) > 0.01  # the steps change something


def test_a_training_that_was_cut_off_goes_on_as_if_it_had_not_been(
    config, encoder, challenge, tmp_path, watch
):
    config = dataclasses.replace(config, epochs=2, lora_dropout=0.1)
    train, held_out = challenge.train.head(8), challenge.train.tail(4)
    whole, cut = FoldPaths(tmp_path / "whole"), FoldPaths(tmp_path / "cut")
    train_fold(fresh(config), config, encoder, train, held_out, whole)

    watch(StopsAfter(epochs=1))
    with pytest.raises(KeyboardInterrupt):
        train_fold(fresh(config), config, encoder, train, held_out, cut)
    assert not cut.meta.exists()
    assert len(pd.read_csv(cut.train_log)) == 2  # steps of an epoch

    counter = CountsSteps()
    watch(counter)
    train_fold(fresh(config), config, encoder, train, held_out, cut)
    assert counter.steps == 2, "the first epoch was trained again"
    expected, found = pd.read_csv(whole.train_log), pd.read_csv(cut.train_log)
    assert found["step"].tolist() == expected["step"].tolist()
    np.testing.assert_allclose(found["loss"], expected["loss"], atol=1e-5)
    torch.testing.assert_close(weights(cut), weights(whole), atol=1e-6, rtol=0)


def stop_and_move(folder, to, epochs, watch, train):
    """Train until the checkpoint of an epoch is written, and rename the fold's folder."""
    watch(StopsAfter(epochs))
    with pytest.raises(KeyboardInterrupt):
        train(FoldPaths(folder))
    return FoldPaths(folder.rename(to))


def test_a_training_goes_on_elsewhere_from_its_newest_whole_checkpoint(
    config, encoder, challenge, tmp_path, watch, capsys
):
    """The newest one is torn, as is the log; the first epoch is the best, and has moved."""
    config = dataclasses.replace(config, epochs=3, learning_rate=0.5)  # it only gets worse
    rows = challenge.train.head(8), challenge.train.tail(4)

    def train(paths):
        return train_fold(fresh(config), config, encoder, *rows, paths)

    whole = FoldPaths(tmp_path / "whole")
    meta = train(whole)
    assert meta["best_epoch"] == 1

    moved = stop_and_move(tmp_path / "cut", tmp_path / "moved", 2, watch, train)
    (newest,) = moved.checkpoints.glob("*/checkpoint-4")
    (newest / "optimizer.pt").write_bytes(b"")
    moved.train_log.write_bytes(moved.train_log.read_bytes()[:-9])
    counter = CountsSteps()
    watch(counter)
    found = train(moved)
    assert counter.steps == 4, "two of three epochs"
    assert "checkpoint-4 is left out: optimizer.pt (0 bytes)" in capsys.readouterr().out
    assert found["epochs"] == meta["epochs"] and sha256(moved.adapter) == sha256(whole.adapter)
    assert pd.read_csv(moved.train_log)["step"].tolist() == [1, 2, 3, 4, 5, 6]

    # Nothing is left to train, only the best epoch's weights to be found
    at_its_end = stop_and_move(tmp_path / "end", tmp_path / "moved-end", 3, watch, train)
    counter = CountsSteps()
    watch(counter)
    train(at_its_end)
    assert counter.steps == 0 and sha256(at_its_end.adapter) == sha256(whole.adapter)


def test_unused_memory_is_given_back_at_the_ends_of_epochs_and_evaluations(
    config, encoder, challenge, tmp_path, monkeypatch
):
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(1))
    config = dataclasses.replace(config, epochs=2)
    train, held_out = challenge.train.head(4), challenge.train.tail(4)
    train_fold(fresh(config), config, encoder, train, held_out, FoldPaths(tmp_path / "fold0"))
    assert len(freed) >= 4  # two epochs, each with an evaluation; the Trainer may free some more


def test_a_training_without_finite_gradients_stops(
    config, encoder, challenge, tmp_path, monkeypatch
):
    def nan_loss(outputs, labels, **_):
        return outputs.logits.sum() * float("nan")

    monkeypatch.setattr(_trainer, "answer_loss", nan_loss)
    monkeypatch.setattr(fold, "NonFiniteGuard", lambda: NonFiniteGuard(most_in_a_row=3))
    config = dataclasses.replace(config, micro_batch=1, accumulation=1)
    paths = FoldPaths(tmp_path / "fold0")
    train, held_out = challenge.train.head(6), challenge.train.tail(4)
    with pytest.raises(TrainingError, match=r"step 3\b.*\b3 steps"):
        train_fold(fresh(config), config, encoder, train, held_out, paths)
    assert not paths.meta.exists()

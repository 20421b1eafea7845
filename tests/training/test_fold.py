import dataclasses
import functools
from types import SimpleNamespace

import bitsandbytes as bnb
import numpy as np
import pandas as pd
import pytest
import torch
from bases import base_with_lora
from safetensors.torch import load_file
from transformers import EvalPrediction, TrainerCallback

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.metrics import log_loss
from vqa_utils.model.encoder import IGNORED
from vqa_utils.model.loading import load_adapter
from vqa_utils.scoring.options import score_options
from vqa_utils.training import fold as train
from vqa_utils.training._callbacks import LOG_COLUMNS, NonFiniteGuard, TrainingError
from vqa_utils.training.fold import (
    answer_loss,
    held_out_scores,
    last_whole_checkpoint,
    train_fold,
    training_arguments,
    training_key,
)


def fresh(config):
    return base_with_lora(config)


def weights(paths):
    return load_file(paths.adapter / "adapter_model.safetensors")


def test_the_loss_is_the_mean_over_the_answers_of_all_micro_batches():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3, 11), torch.full((6, 9), IGNORED)
    labels[:, -2] = torch.randint(11, (6,))  # predicted by the first of the three kept positions
    whole = torch.nn.functional.cross_entropy(logits[:, 0], labels[:, -2])
    parts = [
        answer_loss(SimpleNamespace(logits=logits[i]), labels[i], 6)
        for i in (slice(0, 1), slice(1, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(answer_loss(SimpleNamespace(logits=logits), labels), whole)


def test_held_out_scores_of_known_logits():
    labels = np.full((2, 5), IGNORED)
    labels[:, 2] = [21, 20]  # the letters b and a
    logits = np.log(np.array([[0.1, 0.7, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]]))
    scores = held_out_scores(EvalPrediction(logits, labels), [20, 21, 22, 23])
    assert scores == {"accuracy": 0.5, "log_loss": pytest.approx(-(np.log(0.7) + np.log(0.1)) / 2)}


class KeepsGradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        )


def with_b(model):
    """A model whose A has gradients from the first step on."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_micro_batches_of_like_length_train_the_same_adapter(
    config, encoder, challenge, tmp_path, monkeypatch
):
    longer = [
        question + " 자세히 보세요." * (i * 7 % 5)
        for i, question in enumerate(challenge.train["question"])
    ]
    rows = challenge.train.assign(question=longer)
    masks, results, padding = [], [], []
    trainer_class, examples = train.StepTrainer, encoder.examples
    monkeypatch.setattr(
        encoder, "examples", lambda rows: masks.append((b := examples(rows))["attention_mask"]) or b
    )
    for micro, steps in ((16, 1), (4, 4), (1, 16)):
        c = dataclasses.replace(
            config, micro_batch=micro, accumulation=steps, learning_rate=1e-3, score_batch=2
        )
        paths, kept = FoldPaths(tmp_path / f"{micro}x{steps}"), KeepsGradients()
        watched = functools.partial(
            lambda kept, **options: with_callback(trainer_class(**options), kept), kept
        )
        monkeypatch.setattr(train, "StepTrainer", watched)
        train_fold(with_b(fresh(c)), c, encoder, rows.head(20), rows.tail(4), paths)
        trained, held_out = masks[:-2], masks[-2:]
        padding.append(
            [sum(int((mask == 0).sum()) for mask in part) for part in (trained, held_out)]
        )
        masks.clear()
        results.append((pd.read_csv(paths.train_log), kept.steps, weights(paths)))
    assert padding == [[756, 69], [252, 69], [0, 69]]
    for log, gradients, adapter in results[1:]:
        np.testing.assert_allclose(log["loss"], results[0][0]["loss"], atol=1e-5)
        assert len(gradients) == 2  # of 16 and of 4 rows
        for step, expected in zip(gradients, results[0][1], strict=True):
            torch.testing.assert_close(step, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(adapter, results[0][2], atol=2e-4, rtol=0)


def test_a_fold_writes_its_log_its_scores_and_its_best_epoch(config, encoder, challenge, tmp_path):
    config = dataclasses.replace(config, epochs=2)
    paths = FoldPaths(tmp_path / "fold0")
    meta = train_fold(
        fresh(config), config, encoder, challenge.train.head(16), challenge.train.tail(8), paths
    )
    log = pd.read_csv(paths.train_log)
    assert (
        list(log) == LOG_COLUMNS
        and log["step"].tolist() == list(range(1, 9))
        and log["max_steps"].unique() == [8]
    )
    assert log[["loss", "grad_norm", "seconds_per_step", "memory_gib"]].notna().all().all()
    assert log["learning_rate"].iloc[-1] < log["learning_rate"].max() == config.learning_rate
    assert [scores["epoch"] for scores in meta["epochs"]] == [1, 2]
    best = min(meta["epochs"], key=lambda scores: scores["log_loss"])
    assert meta["best_epoch"] == best["epoch"] and read_json(paths.meta) == meta
    assert not list(paths.checkpoints.glob("*")), "optimizer states are left behind"


def test_the_adapter_that_is_kept_is_the_best_epochs(config, encoder, challenge, tmp_path):
    # Three rows repeated at a high rate: the second and third epoch only make the others worse
    config = dataclasses.replace(config, epochs=3, learning_rate=3e-2)
    held_out = challenge.train.tail(8)
    meta = train_fold(
        fresh(config),
        config,
        encoder,
        challenge.train.head(4),
        held_out,
        FoldPaths(tmp_path / "fold0"),
    )
    losses = [scores["log_loss"] for scores in meta["epochs"]]
    model, _, _ = load_adapter(tmp_path / "fold0" / "adapter", config)
    found = log_loss(score_options(model, encoder, held_out, batch_size=8), held_out["answer"])
    assert found == pytest.approx(min(losses), abs=1e-3) and losses[-1] > min(losses) + 0.01


def test_bitsandbytes_optimizer_trains_as_torchs(config, encoder, challenge, tmp_path, monkeypatch):
    """`use_cpu_offload` takes it, and autograd sees nothing of its steps; what it keeps in host memory is left out here."""
    config = dataclasses.replace(config, epochs=2, learning_rate=1e-2)
    rows, held_out = challenge.train.head(16), challenge.train.tail(8)
    usual = train_fold(
        fresh(config), config, encoder, rows, held_out, FoldPaths(tmp_path / "torch")
    )

    def create_optimizer(self, model=None):
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = bnb.optim.AdamW(
            learning, lr=config.learning_rate, weight_decay=0.0, optim_bits=32
        )
        return self.optimizer

    monkeypatch.setattr(train.StepTrainer, "create_optimizer", create_optimizer)
    other = train_fold(
        fresh(config), config, encoder, rows, held_out, FoldPaths(tmp_path / "bitsandbytes")
    )
    losses = [[scores["log_loss"] for scores in meta["epochs"]] for meta in (usual, other)]
    assert (
        losses[1] == pytest.approx(losses[0], rel=1e-3) and abs(losses[0][1] - losses[0][0]) > 0.01
    )


class StopsAfterOneEpoch(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


class CountsSteps(TrainerCallback):
    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def test_a_training_that_was_cut_off_goes_on_as_if_it_had_not_been(
    config, encoder, challenge, tmp_path, monkeypatch
):
    config = dataclasses.replace(config, epochs=2, lora_dropout=0.1)
    train_rows, held_out = challenge.train.head(16), challenge.train.tail(8)
    whole, cut = FoldPaths(tmp_path / "whole"), FoldPaths(tmp_path / "cut")
    train_fold(fresh(config), config, encoder, train_rows, held_out, whole)
    original = train.StepTrainer
    monkeypatch.setattr(
        train,
        "StepTrainer",
        lambda **options: with_callback(original(**options), StopsAfterOneEpoch()),
    )
    with pytest.raises(KeyboardInterrupt):
        train_fold(fresh(config), config, encoder, train_rows, held_out, cut)
    assert not cut.meta.exists() and len(pd.read_csv(cut.train_log)) == 4
    counter = CountsSteps()
    monkeypatch.setattr(
        train, "StepTrainer", lambda **options: with_callback(original(**options), counter)
    )
    train_fold(fresh(config), config, encoder, train_rows, held_out, cut)
    assert counter.steps == 4, "the first epoch was trained again"
    a, b = pd.read_csv(whole.train_log), pd.read_csv(cut.train_log)
    assert b["step"].tolist() == a["step"].tolist()
    np.testing.assert_allclose(b["loss"], a["loss"], atol=1e-5)
    for name, value in weights(cut).items():
        torch.testing.assert_close(value, weights(whole)[name], atol=1e-6, rtol=0)


def with_callback(trainer, callback):
    trainer.add_callback(callback)
    return trainer


def test_checkpoints_of_other_settings_or_rows_are_not_resumed(config, challenge):
    key = training_key(config, challenge.train)
    assert key == training_key(config, challenge.train.copy())
    assert key != training_key(dataclasses.replace(config, seed=1), challenge.train)
    assert key != training_key(config, challenge.train.head(3))
    assert key != training_key(config, challenge.train.assign(answer="a"))
    assert key == training_key(
        dataclasses.replace(config, score_batch=3, baselines=False), challenge.train
    )


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    for name, whole in (("checkpoint-4", True), ("checkpoint-12", True), ("checkpoint-20", False)):
        (tmp_path / name).mkdir()
        if whole:
            (tmp_path / name / "trainer_state.json").touch()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")
    assert (
        not (tmp_path / "checkpoint-20").exists()
        and last_whole_checkpoint(tmp_path / "none") is None
    )


@pytest.mark.parametrize(("workers", "expected"), [(0, None), (2, 4), (3, 3), (16, 2)])
def test_the_next_steps_micro_batches_are_made_while_one_computes(
    config, tmp_path, workers, expected
):
    config = dataclasses.replace(config, micro_batch=4, accumulation=8, num_workers=workers)
    assert training_arguments(config, tmp_path).dataloader_prefetch_factor == expected


def test_a_second_visible_gpu_does_not_double_the_batch(
    config, encoder, challenge, tmp_path, monkeypatch
):
    seen = {}
    original = train.StepTrainer

    def recorded(**options):
        seen["gpus"], seen["batch"] = options["args"].n_gpu, options["args"].train_batch_size
        return original(**options)

    monkeypatch.setattr(train, "StepTrainer", recorded)
    arguments = train.training_arguments

    def two_gpus(*given, **options):
        made = arguments(*given, **options)
        made._n_gpu = 2
        return made

    monkeypatch.setattr(train, "training_arguments", two_gpus)
    train_fold(
        fresh(config),
        config,
        encoder,
        challenge.train.head(4),
        challenge.train.tail(4),
        FoldPaths(tmp_path / "fold0"),
    )
    assert seen == {"gpus": 1, "batch": config.micro_batch}


def test_unused_memory_is_given_back_at_the_ends_of_epochs_and_evaluations(
    config, encoder, challenge, tmp_path, monkeypatch
):
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(1))
    config = dataclasses.replace(config, epochs=2)
    train_fold(
        fresh(config),
        config,
        encoder,
        challenge.train.head(4),
        challenge.train.tail(4),
        FoldPaths(tmp_path / "f"),
    )
    assert len(freed) >= 4  # two epochs, each with an evaluation; the Trainer may free some more


def test_gradients_that_are_no_numbers_are_counted_and_end_the_training():
    guard, state = NonFiniteGuard(most_in_a_row=3), SimpleNamespace(global_step=7)
    for norm in (float("inf"), float("nan"), 1.0, float("nan"), float("nan")):
        guard.on_log(None, state, None, logs={"loss": 0.5, "grad_norm": norm})
    assert guard.skipped == 4
    with pytest.raises(
        TrainingError,
        match=r"step 7: expected finite gradients, found none in the last 3 steps \(loss nan\)",
    ):
        guard.on_log(None, state, None, logs={"loss": float("nan"), "grad_norm": float("nan")})


def test_a_training_without_finite_gradients_stops(
    config, encoder, challenge, tmp_path, monkeypatch
):
    config = dataclasses.replace(config, micro_batch=1, accumulation=1)
    monkeypatch.setattr(
        train, "answer_loss", lambda outputs, labels, **_: outputs.logits.sum() * float("nan")
    )
    with pytest.raises(TrainingError, match="found none in the last 20 steps"):
        train_fold(
            fresh(config),
            config,
            encoder,
            challenge.train.head(24),
            challenge.train.tail(4),
            FoldPaths(tmp_path / "f"),
        )
    assert not (tmp_path / "f" / "meta.json").exists()

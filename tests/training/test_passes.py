"""A row much longer than the others, in training and in its evaluation."""

import dataclasses

import pandas as pd
import pytest
import torch
from bases import base_with_lora
from safetensors.torch import load_file
from transformers import TrainerCallback

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.model.encoder import IGNORED
from vqa_utils.training import fold
from vqa_utils.training._passes import ExamplePasses, passes_of
from vqa_utils.training.fold import train_fold


def with_outlier(rows, number):
    """The rows with one of many words."""
    rows = rows.reset_index(drop=True)
    rows.loc[number, "question"] += " 자세히 보세요." * 60
    return rows


def test_a_batch_without_an_outlier_is_as_it_was(encoder, challenge):
    rows = challenge.train.head(4).to_dict("records")
    measured = [{**row, "length": 100} for row in rows]
    batch, expected = ExamplePasses(encoder, 100)(measured), encoder.examples(rows)
    assert batch.keys() == expected.keys() and passes_of(batch) == [batch]
    torch.testing.assert_close(batch["input_ids"], expected["input_ids"])


def test_an_outlier_is_encoded_in_a_pass_of_its_own(encoder, challenge):
    rows = challenge.train.head(4).to_dict("records")
    measured = [{**row, "length": 100} for row in rows]
    measured[2]["length"] = 101
    batch = ExamplePasses(encoder, 100)(measured)
    assert [len(one["input_ids"]) for one in passes_of(batch)] == [1, 3]
    assert batch["labels"].shape == (4, 2) and (batch["labels"][:, 0] == IGNORED).all()
    letters = encoder.processor.tokenizer.batch_decode(batch["labels"][:, 1:])
    assert letters == [rows[number]["answer"] for number in (2, 0, 1, 3)]


class Watching(TrainerCallback):
    """Keeps the gradients of each step, and the loss of the held-out rows."""

    def __init__(self):
        self.steps = []
        self.held_out_loss = None

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.held_out_loss = metrics["eval_loss"]

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        named = model.named_parameters()
        self.steps.append({name: one.grad.clone() for name, one in named if one.requires_grad})


@pytest.mark.slow
@pytest.mark.parametrize(("micro_batch", "accumulation"), [(8, 1), (4, 2)])
def test_an_outlier_leaves_gradients_and_scores_as_they_are(
    config, encoder, challenge, tmp_path, monkeypatch, micro_batch, accumulation
):
    train = with_outlier(challenge.train.head(12), 5)
    held_out = with_outlier(challenge.train.tail(6), 1)
    padded = []  # the tokens of each pass that is encoded
    examples = encoder.examples

    def watched(rows):
        batch = examples(rows)
        padded.append(batch["input_ids"].numel())
        return batch

    monkeypatch.setattr(encoder, "examples", watched)
    make_trainer = fold.make_trainer
    found = []
    for text_tokens in (10**5, "auto"):
        settings = dataclasses.replace(
            config,
            micro_batch=micro_batch,
            accumulation=accumulation,
            score_batch=6,
            text_tokens=text_tokens,
        )
        kept = Watching()

        def with_kept(*given, kept=kept):
            trainer = make_trainer(*given)
            trainer.add_callback(kept)
            return trainer

        monkeypatch.setattr(fold, "make_trainer", with_kept)
        padded.clear()
        paths = FoldPaths(tmp_path / str(text_tokens))
        torch.manual_seed(0)
        model = base_with_lora(settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        meta = train_fold(model, settings, encoder, train, held_out, paths)
        losses = pd.read_csv(paths.train_log)["loss"]
        adapter = load_file(paths.adapter / "adapter_model.safetensors")
        losses["held out"] = kept.held_out_loss
        found.append((kept.steps, losses, adapter, meta["epochs"], sum(padded), len(padded)))

    together, apart = found
    for step, expected in zip(apart[0], together[0], strict=True):
        torch.testing.assert_close(step, expected, atol=1e-6, rtol=0)
    pd.testing.assert_series_equal(apart[1], together[1], atol=1e-5)
    torch.testing.assert_close(apart[2], together[2], atol=2e-4, rtol=0)
    for epoch, expected in zip(apart[3], together[3], strict=True):
        assert epoch == pytest.approx(expected, abs=1e-4)
    assert apart[5] == together[5] + 2, "one more pass of training, and one of evaluation"
    assert apart[4] < together[4] / 2

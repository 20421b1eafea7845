import dataclasses

import pytest
import torch
from transformers import Trainer

from vqa_utils.data.paraphrases import with_paraphrases
from vqa_utils.planning.batches import LONGER_INSTRUCTION
from vqa_utils.training import _trainer
from vqa_utils.training._trainer import make_trainer, training_arguments


@pytest.mark.parametrize(("workers", "expected"), [(0, None), (2, 4), (3, 3), (16, 2)])
def test_the_next_steps_micro_batches_are_made_while_one_computes(
    config, tmp_path, workers, expected
):
    config = dataclasses.replace(config, micro_batch=4, accumulation=8, num_workers=workers)
    assert training_arguments(config, tmp_path).dataloader_prefetch_factor == expected


def test_a_second_visible_gpu_does_not_double_the_batch(
    config, encoder, challenge, tmp_path, monkeypatch
):
    def on_two_gpus(*given, **options):
        arguments = training_arguments(*given, **options)
        arguments._n_gpu = 2
        return arguments

    monkeypatch.setattr(_trainer, "training_arguments", on_two_gpus)
    train, held_out = challenge.train.head(4), challenge.train.tail(4)
    model = torch.nn.Linear(1, 1)
    trainer = make_trainer(model, config, encoder, train, held_out, tmp_path, [])
    assert trainer.args.n_gpu == 1
    assert trainer.args.train_batch_size == config.micro_batch


def test_a_micro_batch_ends_its_turn_on_the_gpus(watch_training, tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(_trainer, "end_turn", lambda: ended.append(True))
    rows = [{"length": number} for number in range(16)]
    micro_batches = watch_training(rows, tmp_path)
    assert len(ended) == len(micro_batches) == 8


def test_a_longer_instruction_makes_no_outlier(config, encoder, challenge, tmp_path):
    """The plan counts it, too."""
    rows = challenge.train.head(4), challenge.train.tail(4)
    model = torch.nn.Linear(1, 1)
    usual = dataclasses.replace(config, text_tokens=100)
    plain = make_trainer(model, usual, encoder, *rows, tmp_path, [])
    assert plain.data_collator.row_tokens == encoder.most_image_tokens + 100
    worded = with_paraphrases(rows[0], None), rows[1]
    other = dataclasses.replace(usual, paraphrase=True)
    trainer = make_trainer(model, other, encoder, *worded, tmp_path, [])
    added = trainer.data_collator.row_tokens - plain.data_collator.row_tokens
    assert added == LONGER_INSTRUCTION


@pytest.mark.parametrize("held_out_rows", [0, 4])
def test_an_epoch_is_judged_where_rows_are_held_out(
    config, encoder, challenge, tmp_path, held_out_rows
):
    held_out = challenge.train.tail(held_out_rows)
    model = torch.nn.Linear(1, 1)
    trainer = make_trainer(model, config, encoder, challenge.train.head(4), held_out, tmp_path, [])
    assert isinstance(trainer, Trainer)
    assert trainer.args.load_best_model_at_end == (held_out_rows > 0)
    lengths = [row["length"] for row in trainer.eval_dataset]
    assert len(lengths) == held_out_rows
    assert lengths == sorted(lengths, reverse=True)

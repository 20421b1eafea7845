import dataclasses
import itertools

import numpy as np
import pytest
import torch
from transformers import Trainer

from vqa_utils.training._trainer import StepTrainer, training_arguments

ROWS, STEP = 40, 16  # an epoch is two whole steps and a shorter one
LENGTHS = np.random.default_rng(0).integers(20, 120, ROWS).tolist()


class Watched(torch.nn.Module):
    """One weight, and the rows of each micro-batch that it was given."""

    def __init__(self):
        super().__init__()
        self.weight, self.micro_batches = torch.nn.Parameter(torch.zeros(())), []

    def forward(self, rows):
        self.micro_batches.append(rows.tolist())
        return {"loss": self.weight * rows.sum()}


def micro_batches(trainer_class, config, folder, micro_batch, checkpoint=None):
    """What two epochs are made of, in their order; a checkpoint is left after the fourth step, within the second epoch."""
    config = dataclasses.replace(
        config, micro_batch=micro_batch, accumulation=STEP // micro_batch, epochs=2
    )
    arguments = training_arguments(config, folder)
    arguments.eval_strategy, arguments.save_strategy, arguments.save_steps = "no", "steps", 4
    arguments.load_best_model_at_end = False
    rows = [{"row": row, "length": length} for row, length in enumerate(LENGTHS)]
    model = Watched()
    trainer = trainer_class(
        model,
        arguments,
        train_dataset=rows,
        data_collator=lambda of: {"rows": torch.tensor([row["row"] for row in of])},
    )
    trainer.train(resume_from_checkpoint=checkpoint and str(folder / checkpoint))
    return model.micro_batches


def steps(batches):
    """The rows of each optimizer step of two epochs."""
    rows = list(itertools.chain.from_iterable(batches))
    return [
        rows[epoch : epoch + ROWS][i : i + STEP]
        for epoch in (0, ROWS)
        for i in range(0, ROWS, STEP)
    ]


def padding(batches):
    """Padded places for each token of the rows."""
    places = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)
    return places / (2 * sum(LENGTHS)) - 1


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory):
    return micro_batches(Trainer, config, tmp_path_factory.mktemp("plain"), 4)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_each_step_has_the_rows_that_it_had_with_the_longest_first(
    config, plain, tmp_path, micro_batch
):
    found = steps(micro_batches(StepTrainer, config, tmp_path, micro_batch))
    assert [sorted(step) for step in found] == [sorted(step) for step in steps(plain)]
    assert [len(step) for step in found] == 2 * [16, 16, 8] and sorted(found[0]) != sorted(found[3])
    for step in found:
        lengths = [LENGTHS[row] for row in step]
        assert lengths == sorted(lengths, reverse=True)


def test_one_micro_batch_a_step_is_left_as_it_is(config, plain, tmp_path):
    assert micro_batches(StepTrainer, config, tmp_path, STEP) == steps(plain)


def test_little_is_padding(config, plain, tmp_path):
    like_length = micro_batches(StepTrainer, config, tmp_path, 4)
    assert padding(plain) == pytest.approx(0.44, abs=0.01) and padding(
        like_length
    ) == pytest.approx(0.15, abs=0.01)


def test_a_training_that_was_cut_off_within_an_epoch_goes_on_with_the_same_micro_batches(
    config, tmp_path
):
    whole = micro_batches(StepTrainer, config, tmp_path, 4)
    resumed = micro_batches(StepTrainer, config, tmp_path, 4, "checkpoint-4")
    assert resumed == whole[10 + 4 :]  # an epoch of ten, and the first step of the second

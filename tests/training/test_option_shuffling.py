import dataclasses
from collections import Counter

import pytest
import torch

from vqa_utils.prompts import reorder_options
from vqa_utils.training._option_shuffling import ShuffledOptions, ShuffledSteps, order_of
from vqa_utils.training._trainer import StepTrainer, training_arguments

ROWS, STEP = 42, 16  # an epoch is two whole steps and one of ten rows
RIGHT = "red"


class Seen(torch.nn.Module):
    """One weight, and the rows of each micro-batch that it was given."""

    def __init__(self):
        super().__init__()
        self.weight, self.rows = torch.nn.Parameter(torch.zeros(())), []

    def forward(self, rows):
        self.rows.extend(rows)
        return {"loss": self.weight * len(rows)}


def rows():
    """Every right answer is "a", as in a challenge with a favourite letter."""
    return [
        {
            "id": str(i),
            "a": RIGHT,
            "b": "blue",
            "c": "green",
            "d": "grey",
            "answer": "a",
            "length": i,
        }
        for i in range(ROWS)
    ]


def trained(config, folder, *, micro_batch=4, workers=0, checkpoint=None):
    """The rows of two epochs, as the model saw them; a checkpoint is left after the fourth step, within the second epoch."""
    config = dataclasses.replace(
        config,
        micro_batch=micro_batch,
        accumulation=STEP // micro_batch,
        epochs=2,
        num_workers=workers,
    )
    arguments = training_arguments(config, folder)
    arguments.eval_strategy, arguments.save_strategy, arguments.save_steps = "no", "steps", 4
    arguments.load_best_model_at_end = False
    model = Seen()
    trainer = StepTrainer(
        model,
        arguments,
        train_dataset=ShuffledOptions(rows()),
        data_collator=lambda of: {"rows": of},
    )
    trainer.train(resume_from_checkpoint=checkpoint and str(folder / checkpoint))
    return model.rows


@pytest.mark.parametrize("micro_batch", [4, STEP])
def test_letters_are_balanced_within_each_step_and_the_label_follows(config, tmp_path, micro_batch):
    seen = trained(config, tmp_path, micro_batch=micro_batch)
    assert len(seen) == 2 * ROWS and all(row[row["answer"]] == RIGHT for row in seen)
    for epoch in (seen[:ROWS], seen[ROWS:]):
        assert {row["id"] for row in epoch} == {str(i) for i in range(ROWS)}
        for start in range(0, ROWS, STEP):
            letters = Counter(row["answer"] for row in epoch[start : start + STEP])
            assert max(letters.values()) - min(letters.values()) <= 1 and len(letters) == 4


def test_an_epoch_has_other_places_than_the_one_before():
    sampler = ShuffledSteps(_Rows(ROWS), STEP, seed=0)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    alike = sum(a == b for a, b in zip(first, sampler, strict=True))
    assert alike < ROWS / 4  # one in 24 by chance


def test_wrong_options_move_among_themselves():
    """The right option at each letter with each order of the others: all 24 are possible."""
    sampler = ShuffledSteps(_Rows(2_000), STEP, seed=0)
    assert len({places for _, places in sampler}) == 24


def test_a_training_that_was_cut_off_goes_on_with_the_same_orders(config, tmp_path):
    whole = trained(config, tmp_path)
    assert trained(config, tmp_path, checkpoint="checkpoint-4") == whole[ROWS + STEP :]


def test_workers_change_nothing(config, tmp_path):
    assert trained(config, tmp_path / "two", workers=2) == trained(config, tmp_path / "none")


def test_the_right_option_goes_to_its_place_and_what_is_no_option_stays():
    row = {
        "id": "7",
        "a": "one",
        "b": "two",
        "c": "three",
        "d": "four",
        "answer": "c",
        "question": "?",
    }
    found = reorder_options(row, order_of((0, 3, 1, 2), "c"))
    assert found == row | {"a": "three", "d": "one", "b": "two", "c": "four", "answer": "a"}


class _Rows:
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))

    def __len__(self):
        return self.count

    def set_epoch(self, epoch):
        """The rows stay; only their options are of interest."""

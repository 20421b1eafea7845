from collections import Counter

import numpy as np
import pytest

from vqa_utils.prompts import reorder_options
from vqa_utils.training._option_shuffling import (
    ShuffledOptions,
    ShuffledSteps,
    draw_places,
    order_of,
)

pytestmark = pytest.mark.slow

STEP = 16  # rows
ROWS = 42  # an epoch is two whole steps and one of ten rows
RIGHT = "red"


class SameOrder:
    """Row numbers in the same order in each epoch; only their options are of interest."""

    def __iter__(self):
        return iter(range(ROWS))

    def __len__(self):
        return ROWS

    def set_epoch(self, epoch):
        pass


def shuffled_rows():
    """Every right answer is "a", as in a challenge with a favourite letter."""
    options = {"a": RIGHT, "b": "blue", "c": "green", "d": "grey"}
    rows = []
    for number in range(ROWS):
        rows.append({"id": str(number), **options, "answer": "a", "length": number})
    return ShuffledOptions(rows)


@pytest.fixture
def trained(watch_training):
    """The rows of two epochs, in the order in which the model saw them."""

    def train(folder, **options):
        micro_batches = watch_training(shuffled_rows(), folder, **options)
        return [row for rows in micro_batches for row in rows]

    return train


@pytest.mark.parametrize("micro_batch", [4, STEP])
def test_letters_are_balanced_within_each_step_and_the_label_follows(
    trained, tmp_path, micro_batch
):
    seen = trained(tmp_path, micro_batch=micro_batch)
    assert len(seen) == 2 * ROWS
    assert all(row[row["answer"]] == RIGHT for row in seen)
    for epoch in (seen[:ROWS], seen[ROWS:]):
        assert {row["id"] for row in epoch} == {str(number) for number in range(ROWS)}
        for start in range(0, ROWS, STEP):
            letters = Counter(row["answer"] for row in epoch[start : start + STEP])
            assert len(letters) == 4
            assert max(letters.values()) - min(letters.values()) <= 1


def test_an_epoch_has_other_places_than_the_one_before():
    sampler = ShuffledSteps(SameOrder(), STEP, seed=0)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    alike = sum(one == other for one, other in zip(first, sampler, strict=True))
    assert alike < ROWS / 4  # one in 24 by chance


def test_wrong_options_move_among_themselves():
    """The right option at each letter with each order of the others: all 24 are possible."""
    places = draw_places(2_000, np.random.default_rng(0))
    assert len(set(places)) == 24


def test_a_training_that_was_cut_off_goes_on_with_the_same_orders(trained, tmp_path):
    whole = trained(tmp_path)
    assert trained(tmp_path, checkpoint="checkpoint-4") == whole[ROWS + STEP :]


def test_workers_change_nothing(trained, tmp_path):
    assert trained(tmp_path / "two", workers=2) == trained(tmp_path / "none")


def test_the_right_option_goes_to_its_place_and_the_other_columns_stay():
    options = {"a": "one", "b": "two", "c": "three", "d": "four"}
    row = {"id": "7", **options, "answer": "c", "question": "?"}
    found = reorder_options(row, order_of((0, 3, 1, 2), "c"))
    assert found == row | {"a": "three", "d": "one", "b": "two", "c": "four", "answer": "a"}

import itertools

import numpy as np
import pytest
from transformers import Trainer

STEP = 16  # rows
ROWS = 40  # an epoch is two whole steps and a shorter one, in ten micro-batches of four rows
LENGTHS = np.random.default_rng(0).integers(20, 120, ROWS).tolist()


def rows():
    return [{"row": row, "length": length} for row, length in enumerate(LENGTHS)]


def steps(micro_batches):
    """The rows of each optimizer step of two epochs."""
    seen = list(itertools.chain.from_iterable(micro_batches))
    steps = []
    for epoch in (seen[:ROWS], seen[ROWS:]):
        for start in range(0, ROWS, STEP):
            steps.append([row["row"] for row in epoch[start : start + STEP]])
    return steps


def padded_tokens(micro_batches):
    """Tokens with the padding, since each micro-batch is as long as its longest row."""
    return sum(len(batch) * max(row["length"] for row in batch) for batch in micro_batches)


@pytest.fixture(scope="module")
def plain(watch_training, tmp_path_factory):
    """The micro-batches of transformers' Trainer."""
    return watch_training(rows(), tmp_path_factory.mktemp("plain"), trainer_class=Trainer)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_each_step_has_the_rows_that_it_had_with_the_longest_first(
    watch_training, plain, tmp_path, micro_batch
):
    found = steps(watch_training(rows(), tmp_path, micro_batch=micro_batch))
    assert [sorted(step) for step in found] == [sorted(step) for step in steps(plain)]
    assert [len(step) for step in found] == 2 * [16, 16, 8]
    assert sorted(found[0]) != sorted(found[3])  # epochs have orders of their own
    for step in found:
        lengths = [LENGTHS[row] for row in step]
        assert lengths == sorted(lengths, reverse=True)


def test_one_micro_batch_a_step_is_left_as_it_is(watch_training, plain, tmp_path):
    assert steps(watch_training(rows(), tmp_path, micro_batch=STEP)) == steps(plain)


def test_less_than_half_of_the_padding_is_left(watch_training, plain, tmp_path):
    tokens = 2 * sum(LENGTHS)
    sorted_padding = padded_tokens(watch_training(rows(), tmp_path)) - tokens
    assert 0 < sorted_padding < (padded_tokens(plain) - tokens) / 2


def test_a_training_that_was_cut_off_within_an_epoch_goes_on_with_the_same_micro_batches(
    watch_training, tmp_path
):
    whole = watch_training(rows(), tmp_path)
    resumed = watch_training(rows(), tmp_path, checkpoint="checkpoint-4")
    assert resumed == whole[10 + 4 :]  # behind an epoch, and the first step of the second

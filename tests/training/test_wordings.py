"""Each row in newly drawn words each epoch, whatever else is drawn, and the same after a stop."""

from collections import Counter

import numpy as np
import pytest

from vqa_utils.training._option_shuffling import ShuffledOptions
from vqa_utils.training._wordings import DrawnWordings, WordedRows

pytestmark = pytest.mark.slow

STEP = 16  # rows
ROWS = 42  # an epoch is two whole steps and one of ten rows
RIGHT = "red"


class SameOrder:
    """Row numbers in the same order in each epoch; only the wordings are of interest."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __iter__(self):
        return iter(self.numbers)

    def __len__(self):
        return len(self.numbers)

    def set_epoch(self, epoch):
        pass


def worded_rows():
    """Rows of two to four wordings; the wording shows in the question and in the length."""
    options = {"a": RIGHT, "b": "blue", "c": "green", "d": "grey", "answer": "a"}
    rows = []
    for number in range(ROWS):
        wordings = []
        for wording in range(2 + number % 3):
            length = number + 50 * wording
            row = {"id": str(number), "question": str(wording), "length": length, **options}
            wordings.append(row)
        rows.append(wordings)
    return WordedRows(rows)


@pytest.fixture
def trained(watch_training):
    """The rows of two epochs, in the order in which the model saw them."""

    def train(folder, *, shuffled, **options):
        rows = ShuffledOptions(worded_rows()) if shuffled else worded_rows()
        micro_batches = watch_training(rows, folder, **options)
        return [row for rows in micro_batches for row in rows]

    return train


def words(rows):
    return {row["id"]: row["question"] for row in rows}


def steps(seen):
    """The rows of each optimizer step of two epochs."""
    for epoch in (seen[:ROWS], seen[ROWS:]):
        for start in range(0, ROWS, STEP):
            yield epoch[start : start + STEP]


@pytest.mark.parametrize("micro_batch", [4, STEP])
def test_every_row_comes_once_an_epoch_and_an_epoch_has_other_words(trained, tmp_path, micro_batch):
    seen = trained(tmp_path, shuffled=False, micro_batch=micro_batch)
    first, second = words(seen[:ROWS]), words(seen[ROWS:])
    assert len(seen) == 2 * ROWS
    assert len(first) == len(second) == ROWS
    assert 8 < sum(first[row] != second[row] for row in first) < ROWS  # 27 by chance


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_training_that_was_cut_off_goes_on_with_the_same_words(trained, tmp_path, shuffled):
    whole = trained(tmp_path, shuffled=shuffled)
    resumed = trained(tmp_path, shuffled=shuffled, checkpoint="checkpoint-4")
    assert resumed == whole[ROWS + STEP :]


def test_options_are_shuffled_as_ever_beside_it(trained, tmp_path):
    plain = trained(tmp_path / "plain", shuffled=False)
    seen = trained(tmp_path / "shuffled", shuffled=True)
    assert [row["id"] for row in seen] == [row["id"] for row in plain]
    assert [row["question"] for row in seen] == [row["question"] for row in plain]
    assert all(row[row["answer"]] == RIGHT for row in seen)
    for step in steps(seen):
        letters = Counter(row["answer"] for row in step)
        assert len(letters) == 4
        assert max(letters.values()) - min(letters.values()) <= 1


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_step_is_sorted_by_the_lengths_of_the_words_that_were_drawn(trained, tmp_path, shuffled):
    for step in steps(trained(tmp_path, shuffled=shuffled)):
        lengths = [row["length"] for row in step]
        assert lengths == sorted(lengths, reverse=True)


def test_workers_change_nothing(trained, tmp_path):
    two = trained(tmp_path / "two", shuffled=True, workers=2)
    assert two == trained(tmp_path / "none", shuffled=True)


def drawn(seed, epoch, wordings, numbers=None):
    """The wording of each row."""
    order = SameOrder(numbers or range(len(wordings)))
    sampler = DrawnWordings(order, WordedRows(wordings), seed)
    sampler.set_epoch(epoch)
    return dict(sampler)


def test_a_draw_depends_on_the_seed_the_epoch_and_the_row_alone():
    wordings = worded_rows().wordings
    first = drawn(0, 0, wordings)
    assert drawn(0, 0, wordings, range(ROWS - 1, -1, -1)) == first
    assert drawn(0, 0, wordings[:20]) == {row: first[row] for row in range(20)}

    more_for_row_0 = drawn(0, 0, [wordings[0] * 2, *wordings[1:]])
    assert more_for_row_0 | {0: first[0]} == first

    for seed, epoch in ((0, 1), (1, 0)):
        other = drawn(seed, epoch, wordings)
        assert sum(other[row] != first[row] for row in range(ROWS)) > 8


def test_all_wordings_are_equally_probable():
    rows, wordings = 5_000, 5
    counts = Counter(drawn(0, 0, [[{}] * wordings] * rows).values())
    expected = rows / wordings
    deviation = np.sqrt(expected * (1 - 1 / wordings))  # of a binomial
    assert set(counts) == set(range(wordings))
    assert all(abs(count - expected) < 4 * deviation for count in counts.values())

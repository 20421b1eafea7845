"""Each row in newly drawn words each epoch, whatever else is drawn, and the same after a stop."""

import dataclasses
from collections import Counter

import pandas as pd
import pytest
import torch
from bases import base_with_lora

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.data.paraphrases import ENGLISH, KOREAN, with_paraphrases
from vqa_utils.training._batches import StepTrainer, training_rows
from vqa_utils.training._option_shuffling import ShuffledOptions
from vqa_utils.training._wordings import DrawnWordings, WordedRows
from vqa_utils.training.fold import train_fold, training_arguments

ROWS, STEP = 42, 16  # an epoch is two whole steps and one of ten rows
RIGHT = "red"


class Seen(torch.nn.Module):
    """One weight, and the micro-batches that it was given."""

    def __init__(self):
        super().__init__()
        self.weight, self.micro_batches = torch.nn.Parameter(torch.zeros(())), []

    def forward(self, rows):
        self.micro_batches.append(rows)
        return {"loss": self.weight * len(rows)}


class Order:
    """All rows in their order, in every epoch."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))

    def __len__(self):
        return self.count

    def set_epoch(self, epoch):
        """Only the wordings are of interest."""


def worded_rows():
    """Rows of two to four wordings, whose length goes with the wording."""
    options = {"a": RIGHT, "b": "blue", "c": "green", "d": "grey", "answer": "a"}
    return WordedRows(
        [
            [
                {"id": str(i), "question": str(w), "length": i + 50 * w, **options}
                for w in range(2 + i % 3)
            ]
            for i in range(ROWS)
        ]
    )


def trained(config, folder, *, shuffled, micro_batch=4, workers=0, checkpoint=None):
    """The micro-batches of two epochs; a checkpoint is left after the fourth step, within the second epoch."""
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
    model, rows = Seen(), worded_rows()
    data = ShuffledOptions(rows) if shuffled else rows
    trainer = StepTrainer(
        model, arguments, train_dataset=data, data_collator=lambda of: {"rows": of}
    )
    trainer.train(resume_from_checkpoint=checkpoint and str(folder / checkpoint))
    return model.micro_batches


def flat(micro_batches):
    return [row for rows in micro_batches for row in rows]


def words(rows):
    return {row["id"]: row["question"] for row in rows}


@pytest.mark.parametrize("micro_batch", [4, STEP])
def test_every_row_comes_once_an_epoch_and_an_epoch_has_other_words(config, tmp_path, micro_batch):
    seen = flat(trained(config, tmp_path, shuffled=False, micro_batch=micro_batch))
    first, second = words(seen[:ROWS]), words(seen[ROWS:])
    assert len(seen) == 2 * ROWS and len(first) == len(second) == ROWS
    assert 8 < sum(first[row] != second[row] for row in first) < ROWS  # 27 by chance


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_training_that_was_cut_off_goes_on_with_the_same_words(config, tmp_path, shuffled):
    whole = flat(trained(config, tmp_path, shuffled=shuffled))
    assert (
        flat(trained(config, tmp_path, shuffled=shuffled, checkpoint="checkpoint-4"))
        == whole[ROWS + STEP :]
    )


def test_options_are_shuffled_as_ever_beside_it(config, tmp_path):
    plain, seen = (
        flat(trained(config, tmp_path / str(shuffled), shuffled=shuffled))
        for shuffled in (False, True)
    )
    assert [(row["id"], row["question"]) for row in seen] == [
        (row["id"], row["question"]) for row in plain
    ]
    assert all(row[row["answer"]] == RIGHT for row in seen)
    for epoch in (seen[:ROWS], seen[ROWS:]):
        for start in range(0, ROWS, STEP):
            letters = Counter(row["answer"] for row in epoch[start : start + STEP])
            assert max(letters.values()) - min(letters.values()) <= 1 and len(letters) == 4


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_step_is_sorted_by_the_lengths_of_the_words_that_were_drawn(config, tmp_path, shuffled):
    seen = flat(trained(config, tmp_path, shuffled=shuffled))
    for epoch in (seen[:ROWS], seen[ROWS:]):
        for start in range(0, ROWS, STEP):
            lengths = [row["length"] for row in epoch[start : start + STEP]]
            assert lengths == sorted(lengths, reverse=True)


def test_workers_change_nothing(config, tmp_path):
    two, none = (trained(config, tmp_path / str(n), shuffled=True, workers=n) for n in (2, 0))
    assert two == none


def test_a_draw_depends_on_the_seed_the_epoch_and_the_row_alone():
    def drawn(seed, epoch, rows, order=None):
        sampler = DrawnWordings(order or Order(len(rows)), WordedRows(rows), seed)
        sampler.set_epoch(epoch)
        return dict(sampler)

    rows = worded_rows().rows
    backwards = type(
        "Backwards", (Order,), {"__iter__": lambda order: iter(range(order.count - 1, -1, -1))}
    )
    first = drawn(0, 0, rows)
    assert drawn(0, 0, rows, backwards(ROWS)) == first
    assert drawn(0, 0, rows[:20]) == {row: first[row] for row in range(20)}
    other = [rows[0] * 2, *rows[1:]]
    assert {row: wording for row, wording in drawn(0, 0, other).items() if row} == {
        row: first[row] for row in range(1, ROWS)
    }
    for seed, epoch in ((0, 1), (1, 0)):
        assert sum(drawn(seed, epoch, rows)[row] != first[row] for row in range(ROWS)) > 8


def test_all_wordings_are_equally_probable():
    drawn = Counter(
        wording
        for _, wording in DrawnWordings(Order(5_000), WordedRows([[{}] * 5] * 5_000), seed=0)
    )
    assert set(drawn) == set(range(5)) and all(
        abs(count - 1_000) < 4 * 28.3 for count in drawn.values()
    )  # four deviations


def test_each_wording_has_the_length_of_its_own_tokens(config, encoder, challenge):
    more = pd.DataFrame(
        {"id": challenge.train["id"][:1], "question": "색을 하나만 고르세요. 무슨 색인가요?"}
    )
    rows = with_paraphrases(
        challenge.train.head(3).assign(question=["색은?", "색은?", "colour?"]), more
    )
    data = training_rows(dataclasses.replace(config, paraphrase=True), encoder, rows)
    assert [len(versions) for versions in data.rows] == [2, len(KOREAN), len(ENGLISH)]
    versions = [row for of_row in data.rows for row in of_row]
    encoded = encoder.questions(versions)["attention_mask"].sum(1)
    assert len({row["length"] for row in versions}) > 6
    assert (
        len({int(tokens) - row["length"] for tokens, row in zip(encoded, versions, strict=True)})
        == 1
    )


def test_a_fold_learns_from_other_words_and_is_judged_in_its_own(
    config, encoder, challenge, tmp_path, monkeypatch
):
    """A real training of two epochs on the tiny base, both switches on."""
    config = dataclasses.replace(config, paraphrase=True, shuffle_options=True, epochs=2)
    rows = with_paraphrases(
        challenge.train,
        pd.DataFrame({"id": challenge.train["id"][::2], "question": "무슨 색일까요?"}),
    )
    learns, held_out, usual = rows.head(8), rows.tail(4), challenge.train["question"][0]
    seen, examples = [], encoder.examples
    monkeypatch.setattr(encoder, "examples", lambda batch: seen.extend(batch) or examples(batch))
    meta = train_fold(
        base_with_lora(config),
        config,
        encoder,
        learns,
        held_out,
        FoldPaths(tmp_path / "fold0"),
    )
    assert (
        meta["train_rows"] == 8
        and [scores["epoch"] for scores in meta["epochs"]] == [1, 2]
        and len(seen) == 24
    )
    epochs = [(seen[start : start + 8], seen[start + 8 : start + 12]) for start in (0, 12)]
    for learned, judged in epochs:
        assert {row["id"] for row in learned} == set(learns["id"])
        assert all(row["question"] == usual and "instruction" not in row for row in judged)
    first, second = (
        {row["id"]: (row["question"], row.get("instruction")) for row in learned}
        for learned, _ in epochs
    )
    assert first != second
    drawn = {*first.values(), *second.values()}
    assert {(usual, None), ("무슨 색일까요?", None)} < drawn
    assert len(drawn & {(usual, instruction) for instruction in KOREAN}) > 2

import dataclasses

import pandas as pd
import pytest
from bases import base_with_lora

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.data.paraphrases import ENGLISH, KOREAN, with_paraphrases
from vqa_utils.training._rows import training_rows
from vqa_utils.training.fold import train_fold


def test_each_wording_has_the_length_of_its_own_tokens(config, encoder, challenge):
    rows = challenge.train.head(3).assign(question=["색은?", "색은?", "colour?"])
    of_first = {"id": rows["id"][:1], "question": "색을 하나만 고르세요. 무슨 색인가요?"}
    config = dataclasses.replace(config, paraphrase=True)
    data = training_rows(config, encoder, with_paraphrases(rows, pd.DataFrame(of_first)))
    assert [len(versions) for versions in data.wordings] == [2, len(KOREAN), len(ENGLISH)]

    versions = [row for of_row in data.wordings for row in of_row]
    lengths = [row["length"] for row in versions]
    assert len(set(lengths)) > 6
    tokens = encoder.questions(versions)["attention_mask"].sum(1).tolist()
    template = {count - length for count, length in zip(tokens, lengths, strict=True)}
    assert len(template) == 1, "lengths leave out more than the chat template, which is constant"


@pytest.mark.slow
def test_a_fold_learns_from_other_words_and_is_judged_in_its_own(
    config, encoder, challenge, tmp_path, monkeypatch
):
    """A real training of two epochs on the tiny base, both switches on."""
    config = dataclasses.replace(config, paraphrase=True, shuffle_options=True, epochs=2)
    every_second = {"id": challenge.train["id"][::2], "question": "무슨 색일까요?"}
    rows = with_paraphrases(challenge.train, pd.DataFrame(every_second))
    train, held_out = rows.head(8), rows.tail(4)
    usual = challenge.train["question"][0]
    seen = []
    examples = encoder.examples

    def watched(batch_rows):
        seen.extend(batch_rows)
        return examples(batch_rows)

    monkeypatch.setattr(encoder, "examples", watched)
    model = base_with_lora(config)
    meta = train_fold(model, config, encoder, train, held_out, FoldPaths(tmp_path / "fold0"))
    assert meta["train_rows"] == 8
    assert [scores["epoch"] for scores in meta["epochs"]] == [1, 2]
    assert len(seen) == 2 * (8 + 4)

    words_by_epoch = []
    for epoch in (seen[:12], seen[12:]):
        learned, judged = epoch[:8], epoch[8:]
        assert {row["id"] for row in learned} == set(train["id"])
        assert all(row["question"] == usual and "instruction" not in row for row in judged)
        words = {row["id"]: (row["question"], row.get("instruction")) for row in learned}
        words_by_epoch.append(words)

    first, second = words_by_epoch
    assert first != second
    drawn = {*first.values(), *second.values()}
    assert {(usual, None), ("무슨 색일까요?", None)} < drawn
    assert len(drawn & {(usual, instruction) for instruction in KOREAN}) > 2

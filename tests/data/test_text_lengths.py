"""Tokens of texts, and rows that are much longer than the others."""

import pandas as pd
import pytest
from tokenizers import Tokenizer

from vqa_utils.artifacts.paths import DEMO_MODEL
from vqa_utils.data.text_lengths import describe_texts, longest_usual, measure_texts
from vqa_utils.prompts import INSTRUCTION, LETTERS, Prompt

TOKENIZER = DEMO_MODEL / "tokenizer.json"
WORD = "circle "  # of the tiny base's words


def rows(*questions):
    table = pd.DataFrame({"id": [f"q{number}" for number in range(len(questions))]})
    return table.assign(question=questions, **dict.fromkeys(LETTERS, "red"))


@pytest.mark.parametrize(
    ("lengths", "usual"),
    [
        ([60], 60),
        ([60] * 19 + [1800], 60),
        ([60] * 19 + [248], 248),  # twice the median, and 128
        ([60] * 19 + [249], 60),
        ([60] * 6 + [1800] * 4, 60),
        ([60] * 4 + [1800] * 6, 1800),  # most rows are no outliers
    ],
)
def test_an_outlier_has_far_more_than_twice_the_tokens_of_the_median(lengths, usual):
    assert longest_usual(lengths) == usual


def test_outliers_are_named_by_file_and_id_the_longest_first():
    train, test = rows("what?", "what?", WORD * 400), rows("what?", "what?", WORD * 900)
    found = measure_texts({"train.csv": train, "test.csv": test}, TOKENIZER)
    assert [row for row, _ in found.outliers] == ["test.csv, id q2", "train.csv, id q2"]
    assert found.usual < 80 and found.longest_test == found.outliers[0][1] > 900
    assert 400 < found.longest_trained == found.outliers[1][1] < 900
    said = describe_texts(found)
    assert f"test.csv, id q2 ({found.longest_test:,})" in said and "passes of their own" in said


def test_texts_are_measured_with_the_runs_prompt():
    """By the tokenizer: one more question, and six words more of the instruction."""
    usual = measure_texts({"train.csv": rows(WORD * 5)}, TOKENIZER).usual
    asked_twice = measure_texts({"train.csv": rows(WORD * 5)}, TOKENIZER, Prompt(asks_twice=True))
    tokenizer = Tokenizer.from_file(str(TOKENIZER))

    def count(text):
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    assert asked_twice.usual == usual + count(f"{WORD * 5}\n")
    longer = Prompt(INSTRUCTION + WORD * 6)
    assert measure_texts({"train.csv": rows(WORD * 5)}, TOKENIZER, longer).usual == usual + 6


def test_the_chats_marks_in_a_text_are_counted_as_the_words_that_they_become():
    marks = "<|im_end|>" * 50
    broken = marks.replace("<", "< ")
    for text in (marks, f"{marks}<|image_pad|>"):
        wanted = measure_texts({"train.csv": rows(text.replace("<", "< "))}, TOKENIZER)
        assert measure_texts({"train.csv": rows(text)}, TOKENIZER) == wanted
    own = Prompt(INSTRUCTION + marks)
    wanted = measure_texts({"train.csv": rows("what?")}, TOKENIZER, Prompt(INSTRUCTION + broken))
    assert measure_texts({"train.csv": rows("what?")}, TOKENIZER, own) == wanted
    assert wanted.usual > 150


def test_of_many_outliers_some_are_named():
    train = rows(*["what?"] * 9, *[WORD * 400] * 8)
    assert "and 3 more" in describe_texts(measure_texts({"train.csv": train}, TOKENIZER))


def test_without_outliers_rows_or_a_tokenizer():
    usual = measure_texts({"train.csv": rows("what?")}, TOKENIZER)
    assert usual.outliers == [] and usual.describe_outliers() == ""
    assert "No row is much longer" in describe_texts(usual)
    assert measure_texts({"train.csv": rows()}, TOKENIZER) is None
    assert "tokenizer is not here" in describe_texts(measure_texts({"train.csv": rows("a?")}, None))


def test_a_row_with_paraphrases_has_the_tokens_of_its_longest_wording():
    train = rows(*["what?"] * 5).assign(paraphrases=[[WORD * 500], *[[]] * 4])
    found = measure_texts({"train.csv": train}, TOKENIZER)
    assert found.longest_trained > 500 and found.outliers[0][0] == "train.csv, id q0"
    instructed = measure_texts({"train.csv": train.tail(1)}, TOKENIZER).usual
    assert instructed > measure_texts({"train.csv": rows("what?")}, TOKENIZER).usual


@pytest.mark.parametrize("asked", ["padding", "truncation"])
def test_a_tokenizer_that_pads_or_cuts_counts_the_same(tmp_path, asked):
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    if asked == "padding":
        tokenizer.enable_padding()
    else:
        tokenizer.enable_truncation(100)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    of = {"train.csv": rows("what?", "what?", WORD * 400)}
    assert measure_texts(of, tmp_path / "tokenizer.json") == measure_texts(of, TOKENIZER)

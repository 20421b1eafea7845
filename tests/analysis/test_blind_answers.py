import numpy as np
import pandas as pd
import pytest
from fruit import folds_of, fruit_rows

from vqa_utils.analysis.blind_answers import (
    answers_without_images,
    letter_shares,
    longest_option,
    text_model,
)
from vqa_utils.data.folds import ALWAYS_TRAIN
from vqa_utils.metrics import accuracy, predictions


def rows_without_a_signal(count, question="?"):
    """Rows that differ in their answer alone, which goes round the four letters."""
    options = {letter: f"option {letter}" for letter in "abcd"}
    rows = pd.DataFrame({"id": [str(i) for i in range(count)], "question": question, **options})
    return rows.assign(answer=["abcd"[i % 4] for i in range(count)])


def test_the_frequent_letter_is_that_of_the_other_folds():
    train = rows_without_a_signal(6).assign(answer=list("aabbbc"))
    shares = letter_shares(train, pd.DataFrame({"fold": [0, 0, 1, 1, 1, 1]}))
    assert predictions(shares).tolist() == ["b", "b", "a", "a", "a", "a"]
    assert shares.iloc[0].tolist() == [1 / 8, 4 / 8, 2 / 8, 1 / 8]  # (0, 3, 1, 0) and one each
    even = rows_without_a_signal(8)
    assert predictions(letter_shares(even, folds_of(even, 2)))[0] == "b"


def test_the_longest_option_and_the_earlier_at_a_tie():
    train = rows_without_a_signal(2)
    train.loc[0, "c"] = "the longest of all options"
    assert longest_option(train).tolist() == ["c", "a"]


def test_the_text_model_finds_korean_answers_that_need_no_image():
    train = fruit_rows(120)
    probs = text_model(train, folds_of(train), seed=0)
    assert probs.sum(axis=1).to_numpy() == pytest.approx(1)
    assert accuracy(probs, train["answer"]) > 0.95


def test_the_text_model_learns_nothing_from_the_rows_that_it_answers():
    train = fruit_rows(60)
    folds = folds_of(train, 2)
    first_fold = folds["fold"] == 0
    changed = train.copy()
    changed.loc[first_fold, "answer"] = "a"
    before, after = text_model(train, folds, seed=0), text_model(changed, folds, seed=0)
    pd.testing.assert_frame_equal(before[first_fold], after[first_fold])
    assert not np.allclose(before[~first_fold], after[~first_fold])


def test_the_text_model_learns_from_no_more_rows_than_it_takes(monkeypatch):
    train = fruit_rows(120)
    full = text_model(train, folds_of(train), seed=0)
    monkeypatch.setattr("vqa_utils.analysis.blind_answers.FIT_QUESTIONS", 20)
    few = text_model(train, folds_of(train), seed=0)
    assert not np.allclose(few, full)
    assert few.equals(text_model(train, folds_of(train), seed=0))


@pytest.mark.parametrize("question", ["?", "같은 질문", "a"])
@pytest.mark.parametrize("count", [2, 3, 12])
def test_few_rows_with_one_question_have_answers_too(count, question):
    train = rows_without_a_signal(count, question)
    found = answers_without_images(train, folds_of(train, 2), train["id"], seed=0)
    probabilities = [answers for answers in found.values() if isinstance(answers, pd.DataFrame)]
    assert len(found) == 3 and len(probabilities) == 2
    for probs in probabilities:
        assert probs.sum(axis=1).to_numpy() == pytest.approx(1)


def test_rows_that_no_fold_holds_out_are_learned_from_alone():
    train = fruit_rows(60)
    folds = pd.DataFrame({"id": train["id"], "fold": np.where(np.arange(60) < 15, 0, ALWAYS_TRAIN)})
    backwards = train[:15][::-1]
    probs = answers_without_images(train, folds, backwards["id"], seed=0)["text alone (TF-IDF)"]
    assert len(probs) == 15 and probs.notna().all(axis=None)
    assert accuracy(probs, backwards["answer"]) > 0.9  # in the order that was asked for


def test_unknown_ids_are_an_error():
    train = fruit_rows(6)
    with pytest.raises(KeyError, match="absent"):
        answers_without_images(train, folds_of(train), ["absent"], seed=0)

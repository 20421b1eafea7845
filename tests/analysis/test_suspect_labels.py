"""Labels that look wrong: rejected out of fold, or contradicted by an equal question."""

import numpy as np
import pandas as pd
import pytest
from made_up_probabilities import probabilities

from vqa_utils.analysis.suspect_labels import (
    REJECTED,
    describe_suspects,
    find_suspects,
    usual_confidence,
)
from vqa_utils.prompts import LETTERS


def rows(count, **columns):
    """Train rows of one question each, all labelled "a"."""
    ids = [f"r{number}" for number in range(count)]
    frame = pd.DataFrame({"id": ids, "path": [f"{name}.png" for name in ids]})
    words = {"question": [f"What is {name}?" for name in ids]}
    words |= {letter: [colour] * count for letter, colour in zip(LETTERS, ("red", "blue", "pink", "grey"), strict=True)}  # fmt: skip
    return frame.assign(**words, answer="a", **columns)


def own_pictures(train):
    return pd.Series([f"hash of {path}" for path in train["path"]])


SURE, LESS_SURE, UNSURE = (0.9, 0.1, 0, 0), (0.7, 0.3, 0, 0), (0.4, 0.6, 0, 0)
REJECTING, MORE_REJECTING = (0.1, 0.9, 0, 0), (0.01, 0.0, 0.99, 0)


def test_a_label_is_rejected_with_the_confidence_that_labels_have():
    """By hand: the labelled options have 0.9, 0.7, 0.4, 0.1, 0.01 and eight times 0.9; mean 0.716."""
    train = rows(13)
    probs = probabilities(
        train["id"], SURE, LESS_SURE, UNSURE, REJECTING, MORE_REJECTING, *[SURE] * 8
    )
    assert usual_confidence(probs, train["answer"]) == pytest.approx(9.31 / 13)
    suspects = find_suspects(probs.assign(fold=[0, 1] * 6 + [0]), train, own_pictures(train))
    assert list(suspects["id"]) == ["r4", "r3"], "the one with the least probability first"
    assert list(suspects["chosen"]) == ["c", "b"] and set(suspects["reason"]) == {REJECTED}
    assert list(suspects["p_answer"]) == [0.01, 0.1] and list(suspects["fold"]) == [0, 1]
    words = describe_suspects(suspects, probs, train["answer"])
    assert words.startswith("2 of 13 labels look wrong: for 2, another option has at least 71.6%")


def test_equal_questions_of_one_picture_contradict_each_other_whatever_the_orders_of_their_options():
    train = rows(4)
    train.loc[1, ["question", "a", "b"]] = ["What is  R0", "Blue", "red"]
    train.loc[2, ["question", "a", "b"]] = ["what is r0 ?", "blue", "red"]
    train.loc[2, "answer"] = "b"  # red too
    train.loc[3, "question"] = "What is r0?"
    pictures = pd.Series(["one", "one", "one", "another"])
    probs = probabilities(train["id"], *[SURE] * 4)
    suspects = find_suspects(probs, train, pictures).set_index("id")
    assert suspects["reason"].to_dict() == {"r0": "r1", "r1": "r0, r2", "r2": "r1"}
    assert "0, another option" in describe_suspects(suspects, probs, train["answer"])


def test_without_a_suspect_one_sentence_says_so():
    train = rows(3)
    probs = probabilities(train["id"], SURE, UNSURE, SURE)
    suspects = find_suspects(probs, train, own_pictures(train))
    assert suspects.empty
    assert describe_suspects(suspects, probs, train["answer"]) == "No label looks wrong."


def test_planted_labels_are_found_among_rows_of_a_good_model():
    """As the demo's: 0.97 of its rows are right, and 3 % of the labels are changed."""
    rng = np.random.default_rng(0)
    train = rows(900)
    p = rng.beta(20, 1, 900)
    is_wrong = rng.random(900) < 0.03  # the model's own mistakes, less sure
    p[is_wrong] = rng.uniform(0.1, 0.4, is_wrong.sum())
    planted = rng.choice(np.flatnonzero(~is_wrong), 27, replace=False)
    letters = np.full((900, 4), 0.0)
    letters[:, 0] = p
    letters[:, 1] = 1 - p
    train.loc[planted, "answer"] = "c"
    probs = probabilities(train["id"], *letters)
    found = set(find_suspects(probs, train, own_pictures(train)).index)
    assert len(found & set(planted)) >= 22 and len(found - set(planted)) <= 3

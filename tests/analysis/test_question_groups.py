import numpy as np
import pandas as pd
import pytest

from vqa_utils.analysis.question_groups import length_ranks, question_groups, size_quarters

OPTIONS = {"a": "one", "b": "three", "c": "eleven", "d": "two"}


def groups_of(*texts, answer="a", px=64):
    rows = pd.DataFrame([{"question": text, **OPTIONS, "answer": answer} for text in texts])
    clusters = pd.Series("all", rows.index)
    return question_groups(rows, np.full(len(rows), px), clusters)


@pytest.mark.parametrize(
    ("by", "group", "texts"),
    [
        ("question has", "negation", ["Which is not red?", "빨간색이 아닌 것은?", "사람이 없는 곳은?"]),
        ("kind", "counting", ["How many dogs?", "개는 몇 마리?"]),
        ("kind", "colour", ["what colour", "무슨 색?", "빨간색이 아닌 것은?"]),
        ("kind", "text", ["what text is written?", "간판의 글자는?"]),
    ],
)  # fmt: skip
def test_words_of_a_question_in_english_and_korean(by, group, texts):
    others = ["what notes are there?", "where?"]
    groups = groups_of(*texts, *others)
    assert groups[by, group].tolist() == [True] * len(texts) + [False] * len(others)


def test_groups_with_the_same_rows_are_one():
    groups = groups_of("how many?", "how many?", "where?")
    assert ("kind", "counting") in groups and ("question has", "counting") not in groups
    assert len({mask.to_numpy().tobytes() for _, mask in groups.items()}) == groups.shape[1]
    assert groups.any().all()


@pytest.mark.parametrize(
    ("options", "answer", "rank"),
    [
        (("aa", "b", "c", "d"), "a", "longest"),
        (("aa", "bb", "c", "d"), "b", "longest"),
        (("aa", "b", "c", "d"), "d", "second"),
        (("a", "b", "c", "d"), "c", "all alike"),
        (("aaaa", "bbb", "cc", "d"), "c", "third"),
        (("aaaa", "bbb", "cc", "d"), "d", "shortest"),
    ],
)
def test_length_of_the_right_option_with_ties(options, answer, rank):
    rows = pd.DataFrame([(*options, answer)], columns=[*"abcd", "answer"])
    assert length_ranks(rows).tolist() == [rank]


def test_quarters_of_image_sizes_are_named_by_their_range():
    quarters = size_quarters(np.arange(1, 9) * 1000)
    assert quarters.value_counts().tolist() == [2, 2, 2, 2]
    assert quarters[0] == quarters[1] == "1,000 to 2,000 px"


@pytest.mark.parametrize(
    ("pixels", "names"),
    [
        ([64, 64, 64], ["64 px"] * 3),
        ([64, 64, 64, 64, 81], ["64 px"] * 4 + ["81 px"]),
    ],
)
def test_repeated_sizes_make_fewer_quarters(pixels, names):
    assert size_quarters(np.array(pixels)).tolist() == names

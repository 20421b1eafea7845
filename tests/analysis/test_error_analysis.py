import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact

from vqa_utils.analysis.clusters import question_clusters
from vqa_utils.analysis.error_analysis import (  # fmt: skip
    MIN_ROWS,
    confidence_table,
    describe_confidence,
    describe_confusion,
    describe_groups,
    describe_mistakes,
    describe_spread,
    group_table,
    length_ranks,
    question_groups,
    size_quarters,
    worst_mistakes,
)

RIGHT, WRONG = (0.7, 0.1, 0.1, 0.1), (0.05, 0.05, 0.85, 0.05)


def probabilities(ids, *rows):
    return pd.concat([pd.DataFrame({"id": ids}), pd.DataFrame(rows, columns=list("abcd"))], axis=1)


def questions(*texts, answer="a"):
    options = {"a": "one", "b": "three", "c": "eleven", "d": "two"}
    return pd.DataFrame([{"id": str(i), "path": "x.png", "question": text, **options, "answer": answer}
                         for i, text in enumerate(texts)])  # fmt: skip


def groups_of(rows, pixels=None, clusters=None):
    pixels = np.full(len(rows), 64) if pixels is None else pixels
    clusters = pd.Series("all", rows.index) if clusters is None else clusters
    return question_groups(rows, pixels, clusters)


def test_what_a_question_has_in_english_and_korean():
    texts = ["Which is not red?", "빨간색이 아닌 것은?", "How many dogs?", "개는 몇 마리?", "what colour", "무슨 색?",
             "what text is written?", "간판의 글자는?", "사람이 없는 곳은?", "what notes are there?"]  # fmt: skip
    groups = groups_of(questions(*texts))
    assert groups[("question has", "negation")].to_numpy().nonzero()[0].tolist() == [0, 1, 8]
    assert groups[("kind", "counting")].to_numpy().nonzero()[0].tolist() == [2, 3]
    assert groups[("kind", "colour")].to_numpy().nonzero()[0].tolist() == [1, 4, 5]
    assert groups[("kind", "text")].to_numpy().nonzero()[0].tolist() == [6, 7]


def test_groups_with_the_same_rows_are_one():
    groups = groups_of(questions("how many?", "how many?", "where?"))
    assert ("kind", "counting") in groups and ("question has", "counting") not in groups
    assert len({mask.to_numpy().tobytes() for _, mask in groups.items()}) == groups.shape[1]


def test_length_of_the_right_option_with_ties():
    rows = pd.DataFrame([("aa", "b", "c", "d", "a"), ("aa", "bb", "c", "d", "b"), ("aa", "b", "c", "d", "d"),
                         ("a", "b", "c", "d", "c"), ("aaaa", "bbb", "cc", "d", "c"), ("aaaa", "bbb", "cc", "d", "d")],
                        columns=[*"abcd", "answer"])  # fmt: skip
    assert length_ranks(rows).tolist() == [
        "longest",
        "longest",
        "second",
        "all alike",
        "third",
        "shortest",
    ]


def test_quarters_of_image_sizes():
    quarters = size_quarters(np.array([1, 2, 3, 4, 5, 6, 7, 8]) * 1000)
    assert (
        quarters.value_counts().tolist() == [2, 2, 2, 2]
        and quarters[0] == quarters[1] == "1,000 to 2,000 px"
    )
    assert size_quarters(np.array([64, 64, 64])).tolist() == ["64 px"] * 3
    assert size_quarters(np.array([64, 64, 64, 64, 81])).tolist() == ["64 px"] * 4 + ["81 px"]
    assert size_quarters(np.array([0, 64])).tolist() == ["unknown size", "64 px"]
    assert size_quarters(np.array([0, 0])).tolist() == ["unknown size"] * 2


def masks(**groups):
    return pd.DataFrame({("by", name): np.arange(200) < rows for name, rows in groups.items()})


def test_a_group_is_worse_by_fishers_test_with_holms_correction():
    right = np.arange(200) >= 30  # the first 30 rows are wrong
    table = group_table(right, masks(bad=60, small=MIN_ROWS - 1, all=200))
    bad, small, everything = table.to_dict("records")
    p = fisher_exact([[30, 30], [140, 0]], alternative="less").pvalue
    assert (
        bad["accuracy"] == 0.5
        and bad["rest"] == 1
        and bad["rows"] == 60
        and bad["p_worse"] == pytest.approx(p)
    )
    assert (
        np.isnan(small["p_worse"])
        and np.isnan(everything["p_worse"])
        and np.isnan(everything["rest"])
    )
    assert table["worse"].tolist() == [True, False, False]
    assert 0.35 < bad["low"] < 0.5 < bad["high"] < 0.65
    two = group_table(right, masks(bad=60, other=100))
    assert two["p_worse"][0] == pytest.approx(2 * p)
    assert "by: bad, 50.0% right of 60 rows" in describe_groups(
        table
    ) and "by: bad (50.0%)" in describe_groups(table)


def test_by_chance_alone_hardly_any_group_is_called_worse():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(100):
        groups = pd.DataFrame({("by", str(i)): rng.random(300) < 0.2 for i in range(20)})
        table = group_table(rng.random(300) < 0.8, groups)
        found += table["worse"].any()
    assert found <= 10
    assert describe_groups(table).endswith("beyond chance: none.")


def test_twelve_rows_are_too_few_for_a_hardest_group():
    rows = questions(*["is it?"] * 6, *["how many?"] * 6)
    table = group_table(np.arange(12) < 6, groups_of(rows))
    assert table["p_worse"].isna().all() and not table["worse"].any()
    assert describe_groups(table).startswith(
        f"No group has {MIN_ROWS} rows"
    ) and "few" in describe_spread(table)


@pytest.mark.parametrize("right", [np.ones(60, bool), np.zeros(60, bool)])
def test_all_right_or_all_wrong_make_no_group_worse(right):
    rows = questions(*["is it?"] * 30, *["how many?"] * 30)
    table = group_table(right, groups_of(rows))
    assert not table["worse"].any() and table.loc[table["p_worse"].notna(), "p_worse"].eq(1).all()


def test_clusters_are_named_by_the_words_that_set_them_apart():
    texts = pd.Series(
        ["what is the colour of the cat?"] * 60 + ["how many people are in the street?"] * 60,
        index=range(5, 125),
    )
    clusters = question_clusters(texts, seed=0)
    assert clusters.index.equals(texts.index) and clusters.nunique() == 2
    first, second = clusters.iloc[0].split(), clusters.iloc[-1].split()
    assert set(first) <= {"what", "is", "colour", "of", "cat"} and set(second) <= {
        "how",
        "many",
        "people",
        "are",
        "in",
        "street",
    }
    assert clusters.equals(question_clusters(texts, seed=0))


@pytest.mark.parametrize(
    "texts", [["?"] * 200, ["같은 질문"] * 200, ["?", "!"], ["a"], ["a cat?", "Cat: a!"] * 100]
)
def test_questions_that_are_all_the_same_or_say_nothing_are_one_cluster(texts, recwarn):
    clusters = question_clusters(pd.Series(texts), seed=0)
    assert clusters.nunique() == 1 and clusters.iloc[0]
    assert not recwarn.list  # k-means warns of fewer different points than clusters


def test_bands_of_confidence():
    probs = probabilities(["p", "q", "r"], (0.4, 0.2, 0.2, 0.2), (0.5, 0.5, 0, 0), (1, 0, 0, 0))
    table = confidence_table(probs, np.array([True, False, True]))
    assert table[["confidence", "rows", "accuracy"]].to_numpy().tolist() == [
        ["up to 0.5", 2, 0.5],
        ["above 0.99", 1, 1.0],
    ]
    assert (
        "33.3% of the rows have a confidence of above 0.99, and 100.0% of these are right"
        in describe_confidence(table)
    )
    assert describe_confidence(table.tail(1)).startswith("All rows have a confidence of above 0.99")


def test_the_most_frequent_confusion():
    probs = probabilities(["p", "q", "r"], RIGHT, WRONG, WRONG)
    assert (
        "Of the 2 others, c instead of b is the most frequent kind: 2 rows."
        in describe_confusion(probs, pd.Series(list("abb")))
    )
    assert describe_confusion(probs, pd.Series(list("acc"))).startswith(
        "100.0% of the rows are right"
    )


def test_the_worst_mistakes_first():
    train = questions("is it red?", "how many?", "색은?", "where?").assign(answer=list("abad"))
    probs = probabilities(list("0123"), RIGHT, WRONG, WRONG, (0.01, 0.97, 0.01, 0.01)).assign(
        fold=[0, 1, 0, 1]
    )
    worst = worst_mistakes(probs, train.assign(paraphrases=[()] * len(train)), count=2)
    assert "paraphrases" not in worst
    assert worst[["id", "answer", "chosen", "kind", "fold"]].to_numpy().tolist() == [
        ["3", "d", "b", "other", 1], ["1", "b", "c", "counting", 1],
    ]  # fmt: skip
    assert worst["p_answer"].tolist() == [0.01, 0.05] and worst["p_chosen"].tolist() == [0.97, 0.85]
    assert worst.index.tolist() == [3, 1]
    assert describe_mistakes(worst, np.array([True, False, False, False])) == (
        "2 of 3 mistakes, the least probable right option (✓) first, 1.0% of the probability; 1 of them chose another (bold) with "
        "more than 90%."
    )
    assert describe_mistakes(worst.head(0), np.ones(4, bool)) == "None of the 4 rows is wrong."

import numpy as np
import pandas as pd
import pytest
from made_up_probabilities import RIGHT, WRONG, probabilities
from scipy.stats import fisher_exact

from vqa_utils.analysis.error_analysis import (
    MIN_ROWS,
    describe_confusion,
    describe_groups,
    describe_mistakes,
    describe_spread,
    group_table,
    worst_mistakes,
)


def masks(total, **sizes):
    """Groups of the first rows."""
    return pd.DataFrame({("by", name): np.arange(total) < size for name, size in sizes.items()})


def test_a_group_is_worse_by_fishers_test():
    right = np.arange(200) >= 30  # the first 30 rows are wrong
    table = group_table(right, masks(200, bad=60, all=200))
    bad = table.iloc[0]
    p = fisher_exact([[30, 30], [140, 0]], alternative="less").pvalue
    assert bad["rows"] == 60 and bad["accuracy"] == 0.5 and bad["rest"] == 1
    assert bad["p_worse"] == pytest.approx(p) and bad["worse"]
    assert 0.35 < bad["low"] < 0.5 < bad["high"] < 0.65


def test_holms_method_adjusts_for_the_tested_groups_alone():
    right = np.arange(200) >= 30
    alone = group_table(right, masks(200, bad=60, small=MIN_ROWS - 1, all=200))
    with_another = group_table(right, masks(200, bad=60, other=100))
    assert with_another["p_worse"][0] == pytest.approx(2 * alone["p_worse"][0])


def test_small_groups_and_all_rows_are_not_tested():
    right = np.arange(200) >= 30
    small, everything = group_table(right, masks(200, small=MIN_ROWS - 1, all=200)).to_dict(
        "records"
    )
    assert np.isnan(small["p_worse"]) and not small["worse"]
    assert np.isnan(everything["p_worse"]) and np.isnan(everything["rest"])


def test_the_hardest_group_and_all_worse_ones_are_named():
    right = np.arange(200) >= 30
    hardest, worse = describe_groups(group_table(right, masks(200, bad=60, all=200))).splitlines()
    for said in (hardest, worse):
        assert "by: bad" in said and "50.0%" in said
    assert "60" in hardest
    _, worse = describe_groups(group_table(right, masks(200, fine=199))).splitlines()
    assert "by: fine" not in worse


@pytest.mark.slow
def test_by_chance_alone_hardly_any_group_is_called_worse():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(100):
        groups = pd.DataFrame({("by", str(i)): rng.random(300) < 0.2 for i in range(20)})
        found += group_table(rng.random(300) < 0.8, groups)["worse"].any()
    assert found <= 10


def test_twelve_rows_are_too_few_for_a_hardest_group():
    table = group_table(np.arange(12) < 6, masks(12, one=6, other=9))
    assert table["p_worse"].isna().all() and not table["worse"].any()
    for said in (describe_groups(table), describe_spread(table)):
        assert str(MIN_ROWS) in said and "%" not in said


@pytest.mark.parametrize("right", [np.ones(60, bool), np.zeros(60, bool)])
def test_all_right_or_all_wrong_make_no_group_worse(right):
    table = group_table(right, masks(60, one=30, other=40))
    assert not table["worse"].any() and table["p_worse"].tolist() == [1, 1]


def test_the_spread_is_that_of_the_groups_with_enough_rows():
    right = np.arange(200) >= 30
    table = group_table(right, masks(200, small=MIN_ROWS - 1, bad=60, better=100))
    assert "50.0%" in describe_spread(table) and "70.0%" in describe_spread(table)
    one = describe_spread(table.head(2))
    assert "50.0%" in one and "70.0%" not in one


def test_the_most_frequent_confusion_is_named():
    answers = pd.Series(list("abb"))
    said = describe_confusion(probabilities("pqr", RIGHT, WRONG, WRONG), answers)
    assert "33.3%" in said and "c instead of b" in said and "2 rows" in said
    all_right = describe_confusion(
        probabilities("pqr", RIGHT, WRONG, WRONG), pd.Series(list("acc"))
    )
    assert "100.0%" in all_right and "instead" not in all_right


@pytest.fixture
def train():
    questions = ["is it red?", "how many?", "색은?", "where?"]
    options = {"a": "one", "b": "three", "c": "eleven", "d": "two"}
    train = pd.DataFrame({"id": list("0123"), "path": "x.png", "question": questions, **options})
    return train.assign(answer=list("abad"), paraphrases=[()] * 4)


def test_the_least_probable_right_answers_come_first(train):
    probs = probabilities("0123", RIGHT, WRONG, WRONG, (0.01, 0.97, 0.01, 0.01))
    worst = worst_mistakes(probs.assign(fold=[0, 1, 0, 1]), train, count=2)
    assert worst[["id", "answer", "chosen", "kind", "fold"]].to_numpy().tolist() == [
        ["3", "d", "b", "other", 1],
        ["1", "b", "c", "counting", 1],
    ]
    assert worst["p_answer"].tolist() == [0.01, 0.05]
    assert worst["p_chosen"].tolist() == [0.97, 0.85]
    assert worst.index.tolist() == [3, 1] and "paraphrases" not in worst


def test_further_columns_keep_to_their_rows(train):
    probs = probabilities("3210", RIGHT, WRONG, WRONG, RIGHT)  # in another order than `train`
    clusters = pd.Series(["of 3", "of 2", "of 1", "of 0"], index=list("wxyz"))
    more = {"cluster": clusters, "pixels": np.array([30, 20, 10, 0])}
    worst = worst_mistakes(probs, train, count=4, more=more)
    columns = ["id", "cluster", "pixels"]
    assert sorted(worst[columns].to_numpy().tolist()) == [
        ["1", "of 1", 10],
        ["2", "of 2", 20],
        ["3", "of 3", 30],
    ]
    assert worst.columns[-2:].tolist() == columns[1:]


def test_the_mistakes_in_words_give_their_number_and_confidence(train):
    probs = probabilities("0123", RIGHT, WRONG, WRONG, (0.01, 0.97, 0.01, 0.01))
    worst = worst_mistakes(probs, train, count=2)
    said = describe_mistakes(worst, np.array([True, False, False, False]))
    for datum in ("2 of 3", "1.0%", "1 of them", "90%"):
        assert datum in said
    assert "None of the 4" in describe_mistakes(worst.head(0), np.ones(4, bool))

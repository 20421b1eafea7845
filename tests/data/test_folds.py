import re

import pandas as pd
import pytest

from vqa_utils.data import folds as folds_module
from vqa_utils.data.folds import (
    ALWAYS_TRAIN,
    FoldError,
    copied_answers,
    describe_balance,
    describe_copied_answers,
    leaks,
    make_folds,
    plain_split,
    read_folds,
)
from vqa_utils.presets import preset


def rows(count, answers="abcd"):
    return pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(count)],
            "answer": [answers[i % len(answers)] for i in range(count)],
        }
    )


def test_pictures_stay_together_and_letters_are_balanced():
    train = rows(300)
    groups = [str(i // 2) for i in range(300)]
    folds = make_folds(train, groups, preset("demo"))
    assert leaks(folds).empty
    shares = folds.merge(train).groupby("fold")["answer"].value_counts(normalize=True)
    assert folds["fold"].value_counts().between(95, 105).all() and shares.between(0.22, 0.28).all()


def test_a_plain_split_would_leak():
    assert (
        len(leaks(plain_split(rows(300), [str(i // 2) for i in range(300)], preset("demo")))) > 150
    )
    assert leaks(plain_split(rows(300), [str(i) for i in range(300)], preset("demo"))).empty


def test_a_plain_split_is_not_made_group_by_group(monkeypatch):
    monkeypatch.setattr(
        folds_module, "StratifiedGroupKFold", None
    )  # it takes 0.2 ms a group, and here each row is one
    assert leaks(plain_split(rows(300), [str(i) for i in range(300)], preset("demo"))).empty


def test_what_a_leak_gives_away_is_the_text_of_the_answer():
    options = {"a": ["red", "blue", "red", "red"], "b": ["blue", "red", "blue", "blue"]}
    train = pd.DataFrame(
        {"id": list("wxyz"), **options, "c": "green", "d": "gray", "answer": ["a", "b", "b", "a"]}
    )
    folds = pd.DataFrame({"id": train["id"], "group": ["p", "p", "q", "q"], "fold": [0, 1, 0, 1]})
    copied = copied_answers(train, folds, pd.Series(["colour?"] * 4))
    assert copied.to_dict() == {
        0: True,
        1: True,
        2: False,
        3: False,
    }  # red for red by another letter; blue against red
    assert "right for 50.0% of these, always answering a for 50.0%" in describe_copied_answers(
        train, copied
    )
    assert copied_answers(train, folds.assign(fold=0), pd.Series(["colour?"] * 4)).empty
    assert copied_answers(train, folds, pd.Series(list("1234"))).empty


def test_the_seed_decides():
    train, groups = rows(60), [str(i) for i in range(60)]
    first, again, other = (
        make_folds(train, groups, preset("demo", seed=seed))["fold"].tolist() for seed in (1, 1, 2)
    )
    assert first == again and first != other


def test_twelve_rows_and_a_rare_letter_work():
    folds = make_folds(rows(12, "aaaaabbbbccd"), [str(i) for i in range(12)], preset("demo"))
    assert folds["fold"].value_counts().between(3, 5).all() and len(folds) == 12


def test_a_letter_that_a_fold_lacks_is_named_and_no_warning_is_left(recwarn):
    train = rows(12, "aaaaabbbbccd")
    folds = make_folds(train, [str(i) for i in range(12)], preset("demo"))
    lacking = [k for k in range(3) if "d" not in set(train["answer"][folds["fold"] == k])]
    assert len(lacking) == 2 and not recwarn.list
    for k in lacking:
        assert re.search(
            rf"Fold {k} holds out no row whose answer is (c or )?d: ",
            describe_balance(folds, train),
        )
    assert "No train row" not in describe_balance(folds, train)
    three = rows(12, "aaaabbbbcccc")
    said = describe_balance(make_folds(three, [str(i) for i in range(12)], preset("demo")), three)
    assert said.endswith(
        "\nNo train row has the answer d: no fold learns it, and no score says anything about it."
    )
    even = make_folds(rows(300), [str(i) for i in range(300)], preset("demo"))
    assert describe_balance(even, rows(300)).count("\n") == 0


def test_too_few_pictures_are_an_error_that_says_what_to_do():
    with pytest.raises(FoldError, match=r"found 2 images in 12 rows; set n_folds=2"):
        make_folds(rows(12), ["x"] * 6 + ["y"] * 6, preset("demo"))


def test_the_advice_fits_the_kind_of_split():
    with pytest.raises(FoldError, match=r"set holdout_fraction=0\.33 or add rows"):
        make_folds(rows(12), [str(i // 4) for i in range(12)], preset("demo", use_kfold=False))
    with pytest.raises(FoldError, match=r"found 1 images in 1 rows; add rows"):
        make_folds(rows(1), ["x"], preset("demo"))
    coarse = preset("demo", near_duplicates=4, group_questions=True)
    with pytest.raises(
        FoldError,
        match=r"found 2 groups .*a smaller near_duplicates, group_questions=false, or add rows",
    ):
        make_folds(rows(12), ["x"] * 6 + ["y"] * 6, coarse)


def test_without_kfold_one_part_is_held_out():
    folds = make_folds(rows(100), [str(i) for i in range(100)], preset("demo", use_kfold=False))
    assert folds["fold"].value_counts().to_dict() == {ALWAYS_TRAIN: 80, 0: 20}


def test_folds_are_checked_when_they_are_read(tmp_path):
    path, train = tmp_path / "folds.csv", rows(4)
    with pytest.raises(FoldError, match="run notebook 02_folds first"):
        read_folds(path, train)
    pd.DataFrame({"id": train["id"], "group": ["x", "x", "y", "y"], "fold": [0, 1, 0, 0]}).to_csv(
        path, index=False
    )
    with pytest.raises(FoldError, match=r"several: \['r0', 'r1'\]"):
        read_folds(path, train)
    with pytest.raises(FoldError, match=r"expected the 3 rows of train.csv"):
        read_folds(path, train.head(3))

"""Folds: grouped, balanced, by the seed, checked when they are read, and honest about what they lack."""

import re

import pandas as pd
import pytest
import sklearn.model_selection

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


def numbered(count):
    """A group of its own for each row."""
    return [str(i) for i in range(count)]


def test_a_plain_split_would_leak():
    pairs = [str(i // 2) for i in range(300)]
    assert len(leaks(plain_split(rows(300), pairs, preset("demo")))) > 150
    assert leaks(plain_split(rows(300), numbered(300), preset("demo"))).empty


def test_a_plain_split_is_not_made_group_by_group(monkeypatch):
    # It takes 0.2 ms per group, and here each row is one
    monkeypatch.setattr(sklearn.model_selection, "StratifiedGroupKFold", None)
    assert leaks(plain_split(rows(300), numbered(300), preset("demo"))).empty


def test_a_leak_gives_away_the_text_of_the_answer():
    options = {"a": ["red", "blue", "red", "red"], "b": ["blue", "red", "blue", "blue"]}
    train = pd.DataFrame(
        {"id": list("wxyz"), **options, "c": "green", "d": "gray", "answer": ["a", "b", "b", "a"]}
    )
    folds = pd.DataFrame({"id": train["id"], "group": ["p", "p", "q", "q"], "fold": [0, 1, 0, 1]})
    copied = copied_answers(train, folds, pd.Series(["colour?"] * 4))
    # Red for red by another letter; blue against red
    assert copied.to_dict() == {0: True, 1: True, 2: False, 3: False}
    said = describe_copied_answers(train, copied)
    assert said.startswith("4 ") and said.count("50.0%") == 2 and " a " in said
    assert copied_answers(train, folds.assign(fold=0), pd.Series(["colour?"] * 4)).empty
    assert copied_answers(train, folds, pd.Series(list("1234"))).empty


def test_the_seed_decides():
    def folds_of(seed):
        return make_folds(rows(60), numbered(60), preset("demo", seed=seed))["fold"].tolist()

    assert folds_of(seed=1) == folds_of(seed=1) != folds_of(seed=2)


def test_twelve_rows_and_a_rare_letter_work():
    folds = make_folds(rows(12, "aaaaabbbbccd"), numbered(12), preset("demo"))
    assert folds["fold"].value_counts().between(3, 5).all() and len(folds) == 12


def test_a_letter_that_a_fold_lacks_is_named_and_no_warning_is_left(recwarn):
    train = rows(12, "aaaaabbbbccd")
    folds = make_folds(train, numbered(12), preset("demo"))
    lacking = [k for k in range(3) if "d" not in set(train["answer"][folds["fold"] == k])]
    assert len(lacking) == 2 and not recwarn.list
    _, *lines = describe_balance(folds, train).splitlines()
    for k, line in zip(lacking, lines, strict=True):
        assert re.match(rf"Fold {k} .* (c or )?d:", line)


def test_a_letter_that_no_row_has_is_named():
    train = rows(12, "aaaabbbbcccc")
    _, line = describe_balance(make_folds(train, numbered(12), preset("demo")), train).splitlines()
    assert "answer d:" in line


def test_even_folds_have_nothing_to_be_said_of_a_letter():
    even = make_folds(rows(300), numbered(300), preset("demo"))
    assert len(describe_balance(even, rows(300)).splitlines()) == 1


def test_too_few_pictures_are_an_error_that_says_what_to_do():
    with pytest.raises(FoldError, match=r"2 images in 12 rows.* n_folds=2"):
        make_folds(rows(12), ["x"] * 6 + ["y"] * 6, preset("demo"))


def test_the_advice_fits_the_kind_of_split():
    def advice(train, groups, **changes):
        with pytest.raises(FoldError) as error:
            make_folds(train, groups, preset("demo", **changes))
        return str(error.value).split("; ")[1]

    three = [str(i // 4) for i in range(12)]
    assert "holdout_fraction=0.33" in advice(rows(12), three, use_kfold=False)
    assert "=" not in advice(rows(1), ["x"])  # no setting helps
    two = ["x"] * 6 + ["y"] * 6
    coarse = advice(rows(12), two, near_duplicates=4, group_questions=True)
    for setting in ("n_folds=2", "near_duplicates", "group_questions=false"):
        assert setting in coarse


def test_without_kfold_one_part_is_held_out():
    folds = make_folds(rows(100), numbered(100), preset("demo", use_kfold=False))
    assert folds["fold"].value_counts().to_dict() == {ALWAYS_TRAIN: 80, 0: 20}


def test_folds_are_checked_when_they_are_read(tmp_path):
    path, train = tmp_path / "folds.csv", rows(4)
    with pytest.raises(FoldError, match="02_folds"):
        read_folds(path, train)
    leaking = {"id": train["id"], "group": ["x", "x", "y", "y"], "fold": [0, 1, 0, 0]}
    pd.DataFrame(leaking).to_csv(path, index=False)
    with pytest.raises(FoldError, match=r"\['r0', 'r1'\]"):
        read_folds(path, train)
    with pytest.raises(FoldError, match="3 rows"):
        read_folds(path, train.head(3))

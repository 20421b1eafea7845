import numpy as np
import pandas as pd
import pytest

from vqa_utils.analysis.baselines import (
    answers_without_images,
    baseline_table,
    describe_baselines,
    letter_shares,
    longest_option,
    text_model,
)
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.data.folds import ALWAYS_TRAIN
from vqa_utils.metrics import accuracy, predictions
from vqa_utils.presets import preset

FRUIT = {"바나나": "노란색", "딸기": "빨간색", "포도": "보라색", "오이": "초록색"}


def rows_without_a_signal(count, question="?"):
    """Rows that differ in their answer alone, which goes round the four letters."""
    options = {letter: f"option {letter}" for letter in "abcd"}
    return pd.DataFrame(
        [
            {
                "id": str(i),
                "path": "x.png",
                "question": question,
                **options,
                "answer": "abcd"[i % 4],
            }
            for i in range(count)
        ]
    )


def fruit_rows(count):
    """Korean questions whose answer follows from the fruit that they name, whatever letter it stands at."""
    rng, rows = np.random.default_rng(0), []
    for i in range(count):
        fruit, colours = rng.choice(list(FRUIT)), list(rng.permutation(list(FRUIT.values())))
        ending = rng.choice(["는", "의 색은", "가"])
        rows.append({"id": str(i), "path": "x.png", "question": f"{fruit}{ending} 무슨 색인가요?",
                     **dict(zip("abcd", colours, strict=True)), "answer": "abcd"[colours.index(FRUIT[fruit])]})  # fmt: skip
    return pd.DataFrame(rows)


def folds_of(train, n_folds=3):
    return pd.DataFrame({"id": train["id"], "fold": np.arange(len(train)) % n_folds})


def test_the_frequent_letter_is_that_of_the_other_folds():
    train = rows_without_a_signal(6).assign(answer=list("aabbbc"))
    shares = letter_shares(train, pd.DataFrame({"fold": [0, 0, 1, 1, 1, 1]}))
    assert predictions(shares).tolist() == ["b", "b", "a", "a", "a", "a"]
    assert shares.iloc[0].tolist() == [1 / 8, 4 / 8, 2 / 8, 1 / 8]  # (0, 3, 1, 0) and one each
    assert (
        predictions(letter_shares(rows_without_a_signal(8), folds_of(rows_without_a_signal(8), 2)))[
            0
        ]
        == "b"
    )


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
    others = train.copy()
    others.loc[folds["fold"] == 0, "answer"] = "a"
    before, after = (
        text_model(rows, folds, seed=0)[folds["fold"] == 0] for rows in (train, others)
    )
    pd.testing.assert_frame_equal(before, after)
    assert not np.allclose(
        text_model(others, folds, seed=0)[folds["fold"] == 1],
        text_model(train, folds, seed=0)[folds["fold"] == 1],
    )


def test_it_learns_from_no_more_rows_than_it_takes(monkeypatch):
    train = fruit_rows(120)
    full = text_model(train, folds_of(train), seed=0)
    monkeypatch.setattr("vqa_utils.analysis.baselines.FIT_QUESTIONS", 20)
    few = text_model(train, folds_of(train), seed=0)
    assert not np.allclose(few, full) and few.equals(text_model(train, folds_of(train), seed=0))


@pytest.mark.parametrize("question", ["?", "같은 질문", "a"])
@pytest.mark.parametrize("count", [2, 3, 12])
def test_few_rows_with_one_question_have_answers_too(count, question):
    train = rows_without_a_signal(count, question)
    found = answers_without_images(train, folds_of(train, 2), train["id"], seed=0)
    assert list(found) == ["most frequent letter", "longest option", "text alone (TF-IDF)"]
    for name in ("most frequent letter", "text alone (TF-IDF)"):
        assert found[name].sum(axis=1).to_numpy() == pytest.approx(1)


def test_rows_that_no_fold_holds_out_are_learned_from_alone():
    train = fruit_rows(60)
    folds = pd.DataFrame({"id": train["id"], "fold": np.where(np.arange(60) < 15, 0, ALWAYS_TRAIN)})
    found = answers_without_images(train, folds, train["id"][:15][::-1], seed=0)
    probs = found["text alone (TF-IDF)"]
    assert len(probs) == 15 and probs.notna().all(axis=None)
    assert accuracy(probs, train["answer"][:15][::-1]) > 0.9  # in the order that was asked for


@pytest.fixture
def run(tmp_path, monkeypatch):
    """24 rows in two folds, of which the fine-tuned model has all but the first two right and the base none."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    paths, config, train = RunPaths("baselines"), preset("demo", n_folds=2), fruit_rows(24)
    folds = folds_of(train, 2)
    for k in (0, 1):
        held_out = train[folds["fold"] == k]
        for name, shift in (
            ("oof", held_out["id"].isin(["0", "1"])),
            ("zero_shot", True),
            ("test", False),
        ):
            place = (held_out["answer"].map("abcd".index).to_numpy() + np.asarray(shift)) % 4
            probs = pd.DataFrame(0.1 + 0.6 * np.eye(4)[place], columns=list("abcd"))
            write_probabilities(
                paths.fold(k).probs(name),
                pd.concat([held_out[["id"]].reset_index(drop=True), probs], axis=1),
            )
    return paths, config, folds, train


def test_baselines_are_compared_on_the_same_rows(run):
    table = baseline_table(*run)
    assert table["model"].tolist() == ["fine-tuned", "base, zero-shot"]  # blank was not scored
    assert table["accuracy"].tolist() == [pytest.approx(22 / 24), 0]
    assert np.isnan(table["mcnemar_p"][0]) and table["mcnemar_p"][1] == pytest.approx(2 * 0.5**22)
    assert (
        "base, zero-shot: 0.000, +91.7 points for the fine-tuned, beyond chance (p = 4.8e-07)"
        in describe_baselines(table)
    )


def test_answers_without_images_stand_beside_the_model_in_its_order_of_rows(run):
    *_, folds, train = run
    ids = pd.concat([train["id"][folds["fold"] == k] for k in (0, 1)])
    table = baseline_table(*run, answers_without_images(train, folds, ids, seed=0)).set_index(
        "model"
    )
    assert (
        table.loc["longest option", "accuracy"] == (longest_option(train) == train["answer"]).mean()
    )
    assert table.loc["text alone (TF-IDF)", "accuracy"] == accuracy(
        text_model(train, folds, 0), train["answer"]
    )
    assert table.loc["longest option", ["log_loss", "calibration_error"]].isna().all()
    assert (table["low"] <= table["accuracy"]).all() and (table["accuracy"] <= table["high"]).all()

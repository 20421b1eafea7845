import numpy as np
import pandas as pd
import pytest
from fruit import folds_of, fruit_rows

from vqa_utils.analysis.baselines import baseline_table, describe_baselines
from vqa_utils.analysis.blind_answers import answers_without_images, longest_option, text_model
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.metrics import accuracy
from vqa_utils.presets import preset


def sure_of(letters, ids):
    """Probabilities of 0.7 for one letter of each row, 0.1 for the others."""
    probs = 0.1 + 0.6 * np.eye(4)[["abcd".index(letter) for letter in letters]]
    return pd.DataFrame(probs, columns=list("abcd")).assign(id=list(ids))


def next_letter(letter):
    return "abcd"[("abcd".index(letter) + 1) % 4]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """24 rows in two folds: the fine-tuned model has all but the first two right, the base none."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    paths, config, train = RunPaths("baselines"), preset("demo", n_folds=2), fruit_rows(24)
    folds = folds_of(train, 2)
    wrong = train["answer"].map(next_letter)
    tuned = train["answer"].where(~train["id"].isin(["0", "1"]), wrong)
    for k in (0, 1):
        held_out = folds["fold"] == k
        for split, letters in (("oof", tuned), ("zero_shot", wrong), ("test", tuned)):
            probs = sure_of(letters[held_out], train["id"][held_out])
            write_probabilities(paths.fold(k).probs(split), probs)
    return paths, config, folds, train


def test_baselines_are_compared_on_the_same_rows(run):
    table = baseline_table(*run)
    assert table["model"].tolist() == ["fine-tuned", "base, zero-shot"]  # blank was not scored
    assert table["accuracy"].tolist() == [pytest.approx(22 / 24), 0]
    assert np.isnan(table["mcnemar_p"][0])
    assert table["mcnemar_p"][1] == pytest.approx(2 * 0.5**22)


def test_each_baseline_is_described_by_its_gap_and_p_value(run):
    tuned, base = describe_baselines(baseline_table(*run)).splitlines()
    assert "0.917" in tuned
    for datum in ("base, zero-shot", "0.000", "+91.7", "p < 0.001"):
        assert datum in base
    assert "not beyond" not in base


def test_a_p_value_that_is_too_large_stands_beside_its_level(run):
    near = baseline_table(*run).assign(accuracy=0.5, mcnemar_p=0.018)
    _, base = describe_baselines(near).splitlines()
    assert "not beyond" in base and "p = 0.018; below 0.01" in base


def test_answers_without_images_stand_beside_the_model_in_its_order_of_rows(run):
    *_, folds, train = run
    ids = pd.concat([train["id"][folds["fold"] == k] for k in (0, 1)])
    blind = answers_without_images(train, folds, ids, seed=0)
    table = baseline_table(*run, blind).set_index("model")
    longest_is_right = longest_option(train) == train["answer"]
    assert table.loc["longest option", "accuracy"] == longest_is_right.mean()
    by_text = accuracy(text_model(train, folds, 0), train["answer"])
    assert table.loc["text alone (TF-IDF)", "accuracy"] == by_text
    assert table.loc["longest option", ["log_loss", "calibration_error"]].isna().all()
    assert (table["low"] <= table["accuracy"]).all() and (table["accuracy"] <= table["high"]).all()


def test_accuracy_without_yes_no_questions_is_of_the_other_rows(run):
    paths, config, folds, train = run
    assert baseline_table(*run)["not_yes_no"].equals(baseline_table(*run)["accuracy"])
    options = {"a": "yes", "b": "no", "c": "maybe", "d": "unknown"}
    yes_no = train.assign(question="is it red?", **options)
    two_of_each = pd.concat([yes_no[:2], train[2:]])  # the two wrong rows
    assert baseline_table(paths, config, folds, two_of_each)["not_yes_no"][0] == 1
    assert baseline_table(paths, config, folds, yes_no)["not_yes_no"].isna().all()

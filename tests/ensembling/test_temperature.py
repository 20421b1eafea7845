import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.ensembling import temperature as calibration
from vqa_utils.ensembling.temperature import (
    before_and_after,
    calibrate,
    cross_fitted,
    describe_calibration_effect,
    fit_temperature,
    scaled,
    temperatures_of,
)
from vqa_utils.metrics import log_loss, predictions

LETTERS = list("abcd")


def drawn(rows, temperature, seed=0):
    """Probabilities that are overconfident by `temperature`: answers are drawn from what is left after scaling by it."""
    rng = np.random.default_rng(seed)
    true = softmax(rng.normal(scale=2, size=(rows, 4)), axis=1)
    answers = pd.Series([LETTERS[rng.choice(4, p=p)] for p in true])
    probs = pd.DataFrame(softmax(np.log(true) * temperature, axis=1), columns=LETTERS)
    return probs.assign(id=[f"r{i}" for i in range(rows)], fold=np.arange(rows) % 2), answers


GROUPS = pd.Series([f"g{i // 3}" for i in range(3000)])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_fit_finds_the_temperature_that_the_answers_were_drawn_with(temperature):
    probs, answers = drawn(6000, temperature)
    assert fit_temperature(probs, answers) == pytest.approx(temperature, rel=0.1)


def test_a_temperature_keeps_order_and_sums_and_survives_zeros():
    probs = pd.DataFrame([(0.7, 0.3, 0.0, 0.0), (0.1, 0.2, 0.3, 0.4)], columns=LETTERS)
    assert scaled(probs, 0.5).iloc[0].tolist() == pytest.approx([0.49 / 0.58, 0.09 / 0.58, 0, 0])
    for temperature in (0.05, 1, 20):
        found = scaled(probs, temperature)
        assert found.notna().all(axis=None) and found.sum(axis=1).tolist() == pytest.approx([1, 1])
        assert predictions(found).tolist() == ["a", "d"]


def test_a_certain_mistake_has_a_finite_temperature():
    probs = pd.DataFrame([(1.0, 0.0, 0.0, 0.0)] * 4, columns=LETTERS)
    assert fit_temperature(probs, pd.Series(list("aaab"))) > 5


def test_no_row_is_scaled_by_a_fit_that_saw_it_or_its_picture(monkeypatch):
    probs, answers = drawn(60, 2.5)
    fits = []

    def spy(part, labels):
        fits.append(set(part["id"]))
        return 2.0 + len(fits) / 100  # so that a row tells which fit scaled it

    monkeypatch.setattr(calibration, "fit_temperature", spy)
    found = cross_fitted(probs, answers, GROUPS[:60], seed=1)
    assert found["id"].tolist() == probs["id"].tolist() and len(fits) == 5
    for row in range(60):
        number = next(n for n in range(5) if np.allclose(found.loc[row, LETTERS].astype(float),
                      scaled(probs, 2.0 + (n + 1) / 100).loc[row, LETTERS].astype(float), atol=1e-12))  # fmt: skip
        assert not {f"r{i}" for i in range(60) if GROUPS[i] == GROUPS[row]} & fits[number]


def test_each_fold_gets_its_own_temperature_and_the_rows_keep_their_order():
    probs, answers = drawn(3000, 1.0)
    sharp = probs["fold"] == 1
    probs = pd.concat([probs[~sharp], scaled(probs[sharp], 1 / 3)]).sort_index()
    found = calibrate("auto", probs, answers, GROUPS, seed=0)
    assert found.on and found.temperatures == pytest.approx({0: 1.0, 1: 3.0}, rel=0.15)
    assert (
        found.oof["id"].tolist() == probs["id"].tolist()
        and found.oof["fold"].tolist() == probs["fold"].tolist()
    )
    table = found.table().set_index("fold")
    assert table.loc["all", "log_loss_after"] < table.loc["all", "log_loss"] - 0.1
    assert table.loc[1, "calibration_error_after"] < 0.05 < table.loc[1, "calibration_error"]
    assert "Calibration is on (calibrate=auto): it lowers the log loss" in found.describe()


def test_auto_leaves_alone_what_a_fit_would_not_improve():
    probs, answers = drawn(40, 1.0, seed=3)
    found = calibrate("auto", probs, answers, GROUPS[:40], seed=0)
    assert log_loss(found.after, answers) > log_loss(found.before, answers)
    assert not found.on and found.in_use == {} and found.oof is found.before
    assert "Calibration is off (calibrate=auto): it does not lower the log loss" in found.describe()
    forced = dataclasses.replace(found, setting=True)
    assert forced.on and forced.oof is found.after and set(forced.in_use) == {0, 1}


def test_false_is_never_on_and_a_fold_of_one_picture_stays_as_it_is():
    probs, answers = drawn(3000, 2.5)
    assert not calibrate(False, probs, answers, GROUPS, seed=0).on
    alone = calibrate(True, probs[:6], answers[:6], pd.Series(["g"] * 6), seed=0)
    assert alone.temperatures == {0: 1.0, 1: 1.0}
    pd.testing.assert_frame_equal(alone.after, probs[:6])


def test_the_temperatures_that_a_run_wrote_are_read_back():
    paths = RunPaths("temperatures-test")
    assert temperatures_of(paths) == {}
    write_json(paths.members, {"temperatures": {0: 1.5, 2: 0.7}})
    assert temperatures_of(paths) == {0: 1.5, 2: 0.7}


def test_calibrated_probabilities_are_those_of_the_same_rows_or_none():
    paths, oof = (
        RunPaths("calibrated-rows"),
        pd.DataFrame({"id": ["x", "y"], **dict.fromkeys("abcd", 0.25)}),
    )
    after = oof.iloc[::-1].assign(a=[0.4, 0.7], b=[0.2, 0.1], c=0.2, d=[0.2, 0.0])
    assert list(before_and_after(paths, oof)) == ["as scored"], "05_ensemble has not run"
    write_probabilities(paths.ensemble / "probs_oof.csv", after)
    write_json(paths.members, {"temperatures": {}})
    assert list(before_and_after(paths, oof)) == ["as scored"]
    write_json(paths.members, {"temperatures": {"0": 1.5}})
    sets = before_and_after(paths, oof)
    assert sets["calibrated"]["id"].tolist() == ["x", "y"] and sets["calibrated"]["a"].tolist() == [
        0.7,
        0.4,
    ]
    said = describe_calibration_effect(sets, pd.Series(["a", "a"]))
    assert "as scored: log loss 1.386, confidence off by 75.0%" in said
    assert (
        "calibrated: log loss 0.636, confidence off by 45.0%" in said and "did not see it" in said
    )
    assert list(before_and_after(paths, oof.head(1))) == ["as scored"], (
        "other rows than 05_ensemble calibrated"
    )

import numpy as np
import pandas as pd
import pytest
from drawn_answers import LETTERS, drawn

from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.ensembling import temperature as temperature_module
from vqa_utils.ensembling.temperature import (
    before_and_after,
    cross_fitted,
    describe_calibration_effect,
    fit_temperature,
    read_temperatures,
    scaled,
    temperature_of,
)
from vqa_utils.metrics import predictions


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_fit_finds_the_temperature_that_the_answers_were_drawn_with(temperature):
    probs, answers = drawn(6000, temperature)
    assert fit_temperature(probs, answers) == pytest.approx(temperature, rel=0.1)


def test_a_temperature_keeps_order_and_sums_and_survives_zeros():
    probs = pd.DataFrame([(0.7, 0.3, 0.0, 0.0), (0.1, 0.2, 0.3, 0.4)], columns=LETTERS)
    assert scaled(probs, 0.5).iloc[0].tolist() == pytest.approx([0.49 / 0.58, 0.09 / 0.58, 0, 0])
    for temperature in (0.05, 1, 20):
        found = scaled(probs, temperature)
        assert found.notna().all(axis=None)
        assert found.sum(axis=1).tolist() == pytest.approx([1, 1])
        assert predictions(found).tolist() == ["a", "d"]


def test_a_certain_mistake_has_a_finite_temperature():
    probs = pd.DataFrame([(1.0, 0.0, 0.0, 0.0)] * 4, columns=LETTERS)
    assert fit_temperature(probs, pd.Series(list("aaab"))) > 5


def test_no_row_is_scaled_by_a_fit_that_saw_it_or_its_picture(monkeypatch):
    probs, answers = drawn(60, 2.5)
    groups = pd.Series(np.arange(60) // 3)
    fitted_on = {}  # the rows of each fit, by its temperature

    def spy(part, _):
        temperature = 2.0 + len(fitted_on)  # a row tells by it which fit scaled it
        fitted_on[temperature] = set(part["id"])
        return temperature

    monkeypatch.setattr(temperature_module, "fit_temperature", spy)
    found = cross_fitted(probs, answers, groups, seed=1)
    assert found["id"].tolist() == probs["id"].tolist() and len(fitted_on) == 5
    scaled_rows = set()
    for temperature, ids in fitted_on.items():
        expected = scaled(probs, temperature)[LETTERS].to_numpy()
        by_this_fit = np.isclose(found[LETTERS].to_numpy(), expected, atol=1e-12).all(axis=1)
        same_picture = groups.isin(groups[by_this_fit])
        assert not ids & set(probs["id"][same_picture])
        scaled_rows |= set(probs["id"][by_this_fit])
    assert len(scaled_rows) == 60


def test_a_member_without_rows_of_its_own_gets_the_geometric_mean():
    assert temperature_of({0: 1.0, 1: 4.0, 2: 2.0}, 1) == 4
    assert temperature_of({0: 1.0, 1: 4.0}, 2) == pytest.approx(2)
    assert temperature_of({}, 2) == 1


def test_written_temperatures_are_read_back_by_number():
    paths = RunPaths("temperatures-test")
    assert read_temperatures(paths) == {}
    write_json(paths.members, {"temperatures": {0: 1.5, 2: 0.7}})
    assert read_temperatures(paths) == {0: 1.5, 2: 0.7}


def test_calibrated_probabilities_are_those_of_the_same_rows_or_none():
    paths = RunPaths("calibrated-rows")
    oof = pd.DataFrame({"id": ["x", "y"], **dict.fromkeys(LETTERS, 0.25)})
    after = oof.iloc[::-1].assign(a=[0.4, 0.7], b=[0.2, 0.1], c=0.2, d=[0.2, 0.0])
    assert list(before_and_after(paths, oof)) == ["as scored"], "05_ensemble has not run"
    write_probabilities(paths.ensemble / "probs_oof.csv", after)
    write_json(paths.members, {"temperatures": {}})
    assert list(before_and_after(paths, oof)) == ["as scored"], "calibration is off"
    write_json(paths.members, {"temperatures": {"0": 1.5}})
    calibrated = before_and_after(paths, oof)["calibrated"]
    assert calibrated["id"].tolist() == ["x", "y"] and calibrated["a"].tolist() == [0.7, 0.4]
    other_rows = oof.head(1)
    assert list(before_and_after(paths, other_rows)) == ["as scored"]


def test_the_effect_in_words_gives_the_scores_of_each_set():
    even = pd.DataFrame([[0.25] * 4] * 2, columns=LETTERS)
    sets = {
        "as scored": even,
        "calibrated": even.assign(a=[0.7, 0.4], b=[0.1, 0.2], c=0.2, d=[0, 0.2]),
    }
    first, second, _ = describe_calibration_effect(sets, pd.Series(["a", "a"])).splitlines()
    assert "as scored" in first and "1.386" in first and "75.0%" in first
    assert "calibrated" in second and "0.636" in second and "45.0%" in second

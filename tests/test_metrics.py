import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, norm

from vqa_utils.metrics import (
    accuracy,
    accuracy_interval,
    at_letter,
    expected_calibration_error,
    holm,
    log_loss,
    mcnemar,
    mean_interval,
    number_text,
    one_hot,
    option_matrix,
    p_text,
    predictions,
    reliability,
    with_options,
)  # fmt: skip


def probabilities(*rows):
    return pd.DataFrame(rows, columns=list("abcd"))


def test_accuracy_and_log_loss_of_known_rows():
    probs, answers = (
        probabilities((0.7, 0.1, 0.1, 0.1), (0.4, 0.3, 0.2, 0.1)),
        pd.Series(["a", "b"]),
    )
    assert accuracy(probs, answers) == 0.5
    assert log_loss(probs, answers) == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2)


def test_log_loss_knows_all_letters_even_if_some_are_no_answer():
    assert log_loss(
        probabilities((0.25,) * 4, (0.25,) * 4), pd.Series(["d", "d"])
    ) == pytest.approx(math.log(4))


def test_options_are_a_matrix_and_back():
    frame = probabilities((0.7, 0.1, 0.1, 0.1), (0.4, 0.3, 0.2, 0.1)).assign(id=["x", "y"])
    changed = with_options(frame, option_matrix(frame)[::-1])
    assert changed["id"].tolist() == ["x", "y"] and changed["a"].tolist() == [0.4, 0.7]
    assert one_hot(pd.Series(["c", "a"])).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]


def test_a_tie_goes_to_the_earlier_letter():
    assert predictions(probabilities((0.1, 0.4, 0.4, 0.1)))[0] == "b"


def test_rows_are_matched_by_position_not_by_index():
    probs = probabilities((0.7, 0.1, 0.1, 0.1), (0.1, 0.7, 0.1, 0.1))
    assert accuracy(probs, pd.Series(["a", "b"], index=[7, 3])) == 1.0


def test_mcnemar_against_its_exact_binomial():
    first = np.array([True] * 9 + [False] + [True] * 20)
    second = np.array([False] * 9 + [True] + [True] * 20)
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(first, first) == 1.0


def test_calibration_of_an_overconfident_model():
    probs = probabilities(*[(0.9, 0.1, 0, 0)] * 10)
    answers = pd.Series(["a"] * 6 + ["b"] * 4)
    assert reliability(probs, answers)[["accuracy", "rows"]].iloc[0].tolist() == [0.6, 10]
    assert expected_calibration_error(probs, answers) == pytest.approx(0.3)


@pytest.mark.parametrize("level", [0.95, 0.5])
@pytest.mark.parametrize(("hits", "rows"), [(0, 12), (11, 12), (12, 12), (80, 100), (500, 1000)])
def test_the_interval_of_an_accuracy_solves_wilsons_equation(hits, rows, level):
    right = np.arange(rows) < hits
    z = norm.ppf((1 + level) / 2)
    # an end p is as many standard errors from the found share as the level says, at its own spread
    for p in accuracy_interval(right, level):
        assert abs(hits / rows - p) == pytest.approx(z * math.sqrt(p * (1 - p) / rows), abs=1e-9)


def test_the_interval_of_an_accuracy_has_a_width_where_all_rows_are_alike():
    low, high = accuracy_interval(np.ones(60, bool))
    assert 0.9 < low < high == pytest.approx(1)
    assert np.allclose(accuracy_interval(np.zeros(60, bool)), (1 - high, 1 - low))
    assert np.isnan(accuracy_interval(np.array([], bool))).all()


def test_the_interval_of_an_accuracy_is_that_of_a_series_too():
    right = np.arange(12) < 7
    assert accuracy_interval(pd.Series(right)) == accuracy_interval(right)


def test_option_values_are_looked_up_by_letter():
    matrix = option_matrix(probabilities((0.7, 0.1, 0.2, 0), (0.4, 0.3, 0.2, 0.1)))
    assert at_letter(matrix, pd.Series(["c", "a"], index=[5, 2])).tolist() == [0.2, 0.4]


@pytest.mark.parametrize("level", [0.95, 0.9875])
def test_the_interval_of_means_is_the_percentile_bootstraps(level):
    values = np.random.default_rng(1).exponential((1.0, 3.0), (60, 2))
    found = bootstrap(
        (values,), np.mean, confidence_level=level, method="percentile", random_state=2
    ).confidence_interval
    width = found.high - found.low
    assert (np.abs(np.subtract(mean_interval(values, level), found)) < 0.06 * width).all()
    np.testing.assert_allclose(
        mean_interval(values[:, 0], level), np.array(mean_interval(values, level))[:, 0]
    )
    assert np.isnan(mean_interval(values[:1])).all() and np.array_equal(
        mean_interval(np.ones(5)), (1, 1)
    )


def test_holm_multiplies_the_smallest_by_the_number_of_tests_the_next_by_one_less():
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.9, 0.6])) == pytest.approx([1, 1]) and len(holm(np.array([]))) == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.000"), (0.9766, "0.977"), (0.0, "0.000"), (0.001, "0.001"), (0.00099, "<0.001"),
     (1e-300, "<0.001"), (-0.0004, "0.000"), (-0.25, "-0.250"), (107.0, "107.000")],
)  # fmt: skip
def test_numbers_have_three_decimals(value, text):
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [(1.0, "p = 1.000"), (0.0123, "p = 0.012"), (0.00099, "p < 0.001"), (0.0, "p < 0.001")],
)
def test_p_values_have_three_decimals(p, text):
    assert p_text(p) == text

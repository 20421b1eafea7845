import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from vqa_utils.ensembling import _weights as weights_module
from vqa_utils.ensembling._weights import (
    fit_mixture,
    fit_weights,
    mixed,
    probability_of,
    sign_flip_p,
)
from vqa_utils.metrics import log_loss

LETTERS = list("abcd")


def frame(values):
    return pd.DataFrame(values, columns=LETTERS).assign(id=[f"r{i}" for i in range(len(values))])


def drawn(rows, weights, seed=0):
    """Members with opinions of their own, and answers drawn from their mixture with `weights`."""
    rng = np.random.default_rng(seed)
    members = [softmax(rng.normal(scale=3, size=(rows, 4)), axis=1) for _ in weights]
    truth = sum(w * member for w, member in zip(weights, members, strict=True))
    answers = pd.Series([LETTERS[rng.choice(4, p=p / p.sum())] for p in truth])
    groups = pd.Series([f"g{i // 2}" for i in range(rows)])
    return {f"m{i}": frame(member) for i, member in enumerate(members)}, answers, groups


def right_probabilities(members, answers):
    return np.column_stack([probability_of(member, answers) for member in members.values()])


def loss_of(right, weights):
    return -np.log(right @ weights).mean()


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (0.5, 0.5, 0.0), (1.0, 0.0)])
def test_the_fit_finds_the_weights_that_the_answers_were_drawn_with(weights):
    members, answers, _ = drawn(6000, weights)
    right = right_probabilities(members, answers)
    found = fit_weights(right)
    assert found == pytest.approx(weights, abs=0.04)
    assert found.sum() == pytest.approx(1) and found.min() >= 0
    assert loss_of(right, found) <= loss_of(right, np.array(weights)) + 1e-9


def test_better_weights_than_the_mean_are_used():
    members, answers, groups = drawn(800, (0.9, 0.1, 0.0))
    found = fit_mixture(members, answers, groups, seed=0)
    assert found.uses_fit and found.p < 0.05 and found.weights["m0"] > 0.75
    assert list(found.oof["id"]) == list(members["m0"]["id"])
    assert found.oof[LETTERS].sum(axis=1).to_numpy() == pytest.approx(1)
    *parts, whole = found.fitted.to_dict("records")
    assert whole["rows"] == 800 == sum(part["rows"] for part in parts)
    assert log_loss(found.oof, answers) == pytest.approx(whole["log_loss"])
    assert whole["log_loss"] < whole["log_loss_mean"]


def test_the_words_give_both_log_losses_and_the_p_value():
    members, answers, groups = drawn(100, (0.6, 0.4))
    found = fit_mixture(members, answers, groups, seed=0)
    whole = found.fitted.iloc[-1]
    for number in (f"{whole['log_loss']:.3f}", f"{whole['log_loss_mean']:.3f}", f"{found.p:.3f}"):
        assert number in found.describe()
    assert ("below 0.05" in found.describe()) == (found.p >= 0.05)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_members_of_equal_worth_keep_the_mean(seed):
    members, answers, groups = drawn(300, (0.5, 0.5), seed)
    found = fit_mixture(members, answers, groups, seed=0)
    assert not found.uses_fit and found.weights == {"m0": 0.5, "m1": 0.5}
    pd.testing.assert_frame_equal(found.oof, mixed(list(members.values()), [0.5, 0.5]))


def test_a_member_that_is_given_twice_keeps_the_mean():
    members, answers, groups = drawn(100, (1.0,))
    found = fit_mixture({"m0": members["m0"], "again": members["m0"]}, answers, groups, seed=0)
    assert found.p == 1 and not found.uses_fit


def test_weights_are_judged_on_pictures_that_their_fit_did_not_see(monkeypatch):
    members, answers, groups = drawn(60, (0.9, 0.1))
    own = probability_of(members["m0"], answers)  # each row's is its own, and so names the row
    fits = []  # the weights of each fit, and the rows that it saw

    def spy(right):
        shift = len(fits) / 50  # a row tells by it which fit mixed it
        fits.append((np.array([0.7 + shift, 0.3 - shift]), np.isin(own, right[:, 0])))
        return fits[-1][0]

    monkeypatch.setattr(weights_module, "fit_weights", spy)
    monkeypatch.setattr(weights_module, "sign_flip_p", lambda *_: 0.0)
    found = fit_mixture(members, answers, groups, seed=0)
    *parts, whole = fits
    assert found.uses_fit and len(parts) == 5 and whole[1].all()
    mixed_rows = np.zeros(60, dtype=int)
    for weights, seen in parts:
        expected = mixed(list(members.values()), weights)[LETTERS].to_numpy()
        by_this_fit = np.isclose(found.oof[LETTERS], expected, rtol=0, atol=1e-12).all(axis=1)
        same_picture = groups.isin(groups[by_this_fit])
        assert not (seen & same_picture).any()
        mixed_rows += by_this_fit
    assert (mixed_rows == 1).all()


def test_fitted_weights_that_only_fit_noise_are_not_used():
    rng = np.random.default_rng(5)
    members = {f"m{i}": frame(softmax(rng.normal(size=(40, 4)), axis=1)) for i in range(6)}
    answers = pd.Series(rng.choice(LETTERS, 40))
    found = fit_mixture(members, answers, pd.Series(range(40)).astype(str), seed=0)
    right = right_probabilities(members, answers)
    seen = loss_of(right, fit_weights(right))  # on the rows of the fit, it always looks better
    assert seen < found.fitted["log_loss_mean"].iloc[-1] and not found.uses_fit


def test_the_sign_flip_test_finds_a_shift_alone():
    noise = np.random.default_rng(0).normal(size=200)
    rows = range(200)
    assert sign_flip_p(noise - noise.mean(), rows, seed=0) > 0.9
    assert sign_flip_p(noise - 0.5, rows, seed=0) < 0.01


def test_the_sign_flip_test_flips_the_rows_of_a_picture_together():
    pictures = np.repeat(range(4), 50)
    alike = np.random.default_rng(3).normal(size=4)[pictures] - 3
    # 4 pictures of 50 equal rows are 4 observations: 2 of 2^4 flips are as extreme as none
    assert sign_flip_p(alike, pictures, seed=0) >= 2 / 2**4
    assert sign_flip_p(alike, range(200), seed=0) < 2 / 2**4


def test_the_decision_is_the_same_each_time():
    members, answers, groups = drawn(100, (0.6, 0.4))
    first = fit_mixture(members, answers, groups, seed=3)
    second = fit_mixture(members, answers, groups, seed=3)
    assert first.p == second.p and first.weights == second.weights

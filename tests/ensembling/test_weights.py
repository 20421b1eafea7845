import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from vqa_utils.ensembling import _weights as mixture
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
    groups = [f"g{i // 2}" for i in range(rows)]
    return {f"m{i}": frame(member) for i, member in enumerate(members)}, answers, groups


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (0.5, 0.5, 0.0), (1.0, 0.0)])
def test_the_fit_finds_the_weights_that_the_answers_were_drawn_with(weights):
    members, answers, _ = drawn(6000, weights)
    right = np.column_stack([probability_of(member, answers) for member in members.values()])
    found = fit_weights(right)
    assert (
        found == pytest.approx(weights, abs=0.04)
        and found.sum() == pytest.approx(1)
        and found.min() >= 0
    )
    losses = [-np.log(right @ w).mean() for w in (found, np.array(weights))]
    assert losses[0] <= losses[1] + 1e-9


def test_better_weights_than_the_mean_are_used():
    members, answers, groups = drawn(800, (0.9, 0.1, 0.0))
    found = fit_mixture(members, answers, groups, seed=0)
    assert found.uses_fit and found.p < 0.05 and found.weights["m0"] > 0.75
    assert list(found.oof["id"]) == list(members["m0"]["id"]) and found.oof[LETTERS].sum(
        axis=1
    ).to_numpy() == pytest.approx(1)
    assert found.fitted["rows"].tolist()[-1] == 800 == found.fitted["rows"][:-1].sum()
    assert log_loss(found.oof, answers) == pytest.approx(found.fitted["log_loss"].iloc[-1])
    assert (
        found.fitted["log_loss"].iloc[-1] < found.fitted["log_loss_mean"].iloc[-1]
        and "fitted weights are used" in found.describe()
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_members_of_equal_worth_keep_the_mean(seed):
    members, answers, groups = drawn(300, (0.5, 0.5), seed)
    found = fit_mixture(members, answers, groups, seed=0)
    assert (
        not found.uses_fit
        and found.weights == {"m0": 0.5, "m1": 0.5}
        and "so the mean is used" in found.describe()
    )
    pd.testing.assert_frame_equal(found.oof, mixed(list(members.values()), [0.5, 0.5]))


def test_a_member_that_is_given_twice_keeps_the_mean():
    members, answers, groups = drawn(100, (1.0,))
    found = fit_mixture({"m0": members["m0"], "again": members["m0"]}, answers, groups, seed=0)
    assert found.p == 1 and not found.uses_fit


def test_weights_are_judged_on_pictures_that_their_fit_did_not_see(monkeypatch):
    members, answers, groups = drawn(60, (0.9, 0.1))
    fits = []

    def spy(right):
        fits.append(set(right[:, 0]))  # each row's probability is its own
        return weights_of(len(fits))

    def weights_of(number):
        return np.array(
            [0.7 + number / 50, 0.3 - number / 50]
        )  # so that a row tells which fit mixed it

    monkeypatch.setattr(mixture, "fit_weights", spy)
    monkeypatch.setattr(mixture, "sign_flip_p", lambda *_: 0.0)
    found = fit_mixture(members, answers, groups, seed=0)
    assert found.uses_fit and len(fits) == 6 and len(fits[-1]) == 60
    own = probability_of(members["m0"], answers)
    blends = [mixed(list(members.values()), weights_of(n))[LETTERS].to_numpy() for n in range(1, 6)]
    rows = found.oof[LETTERS].to_numpy()
    for row in range(60):
        number = next(
            n for n in range(5) if np.allclose(blends[n][row], rows[row], rtol=0, atol=1e-12)
        )
        assert not {own[i] for i in range(60) if groups[i] == groups[row]} & fits[number]


def test_fitted_weights_that_only_fit_noise_are_not_used():
    rng = np.random.default_rng(5)
    members = {f"m{i}": frame(softmax(rng.normal(size=(40, 4)), axis=1)) for i in range(6)}
    answers = pd.Series(rng.choice(LETTERS, 40))
    found = fit_mixture(members, answers, [f"g{i}" for i in range(40)], seed=0)
    right = np.column_stack([probability_of(member, answers) for member in members.values()])
    seen = -np.log(right @ fit_weights(right)).mean()
    assert (
        seen < found.fitted["log_loss_mean"].iloc[-1] and not found.uses_fit
    )  # on the rows of the fit, it always looks better


def test_the_sign_flip_test_knows_a_shift_and_flips_rows_of_a_picture_together():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=200)
    rows = list(range(200))
    assert sign_flip_p(noise - noise.mean(), rows, seed=0) > 0.9
    assert sign_flip_p(noise - 0.5, rows, seed=0) < 0.01
    alike = np.repeat(
        rng.normal(size=4) - 1, 50
    )  # four pictures of 50 equal rows are four observations
    assert (
        sign_flip_p(alike, np.repeat(range(4), 50), seed=0)
        >= 2 / 2**4
        > sign_flip_p(alike, rows, seed=0)
    )


def test_the_decision_is_the_same_each_time():
    members, answers, groups = drawn(100, (0.6, 0.4))
    first, again = (fit_mixture(members, answers, groups, seed=3) for _ in range(2))
    assert first.p == again.p and first.weights == again.weights

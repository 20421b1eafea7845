import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from vqa_utils.analysis.position_bias import (
    MIN_ROWS,
    excess_probability,
    pooled_orders,
    position_bias,
)
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_orders, write_probabilities
from vqa_utils.presets import preset

LETTERS = list("abcd")


def orders_of(pull, orders=(0, 1, 2, 3), rows=300, seed=0, noise=0.5):
    """A model's probabilities by order, and the answers.

    Its logits are the options' worth, `pull` [4] at the positions, and noise.
    """
    rng = np.random.default_rng(seed)
    worth = rng.normal(size=(rows, 4))  # of the options, where they are written
    parts = []
    for order in orders:
        at_positions = np.roll(worth, -order, axis=1) + np.asarray(pull)
        at_positions = at_positions + noise * rng.normal(size=(rows, 4))
        probs = np.roll(softmax(at_positions, axis=1), order, axis=1)  # by option again
        ids = [str(i) for i in range(rows)]
        parts.append(pd.DataFrame(probs, columns=LETTERS).assign(id=ids, order=order))
    return pd.concat(parts, ignore_index=True), pd.Series(np.take(LETTERS, worth.argmax(axis=1)))


def mean_of(orders):
    return orders.groupby("id", sort=False)[LETTERS].mean().reset_index()


def bias_of(*args, **options):
    orders, answers = orders_of(*args, **options)
    return position_bias(orders, mean_of(orders), answers)


def flagged(bias):
    """The positions whose interval excludes zero."""
    excludes_zero = (bias.positions["low"] > 0) | (bias.positions["high"] < 0)
    return set(bias.positions["position"][excludes_zero])


def in_points(line, column):
    return [f"{100 * line[name]:+.1f}" for name in (column, "low", "high")]


def test_a_place_that_pulls_is_found_with_its_size():
    orders, answers = orders_of((0, 0, 0.8, 0))
    bias = position_bias(orders, mean_of(orders), answers)
    at_c = []
    for order, part in orders.groupby("order"):
        option_at_c = LETTERS[(2 + order) % 4]
        at_c.append(part[option_at_c].mean())
    excess = np.mean(at_c) - 0.25
    assert bias.positions["excess"][2] == pytest.approx(excess) and 0.1 < excess < 0.2
    assert bias.positions["excess"].sum() == pytest.approx(0) and flagged(bias) == set("abcd")


def test_the_words_name_the_biased_places_and_the_extremes_with_intervals():
    bias = bias_of((0, 0, 0.8, 0))
    said = bias.describe()
    assert "4 orders" in said and "a, b, c, d" in said
    most, least = bias.positions["excess"].idxmax(), bias.positions["excess"].idxmin()
    for position in (most, least):
        line = bias.positions.loc[position]
        excess, low, high = in_points(line, "excess")
        assert f"{line['position']} {excess} ({low} to {high})" in said


@pytest.mark.slow
def test_a_model_without_a_pull_is_called_biased_by_chance_alone():
    biased = 0
    for seed in range(40):
        biased += bool(flagged(bias_of((0, 0, 0, 0), rows=200, seed=seed)))
    assert biased <= 5  # 2 are expected


def test_a_model_that_ignores_places_has_no_bias_at_all():
    exact = bias_of((0, 0, 0, 0), noise=0)
    assert not flagged(exact) and exact.changed == 0 and exact.orders["against_mean"].eq(0).all()
    assert "none" in exact.describe() and "-0.00" not in exact.describe()


def test_few_rows_say_nothing_beyond_chance():
    few = bias_of((0, 0, 3, 0), rows=MIN_ROWS - 1).describe()
    enough = bias_of((0, 0, 3, 0), rows=MIN_ROWS).describe()
    assert f"{MIN_ROWS - 1} rows" in few and "a, b, c, d" not in few
    assert "a, b, c, d" in enough


def test_two_orders_compare_the_places_that_change_sides():
    bias = bias_of((0, 0, 0.8, 0), orders=(0, 2), noise=0.1)
    a, b, c, d = bias.positions["excess"]
    assert a == pytest.approx(-c) and b == pytest.approx(-d)
    assert c > 0.05 and flagged(bias) >= set("ac")
    assert "a against c" in bias.describe() and "b against d" in bias.describe()


def test_the_excess_probability_of_one_row_by_hand():
    as_written, turned = [0.7, 0.1, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1]
    orders = {
        0: pd.DataFrame([as_written], columns=LETTERS),
        2: pd.DataFrame([turned], columns=LETTERS),
    }
    # at position a, a has 0.7 and is due 0.55; c has 0.3 and is due 0.2
    assert excess_probability(orders)[0, 0] == pytest.approx((0.7 - 0.55 + 0.3 - 0.2) / 2)


def test_each_order_against_the_mean_of_all():
    orders, answers = orders_of((1.5, 0, 0, 0))
    bias = position_bias(orders, mean_of(orders), answers)
    table = bias.orders
    assert [name[-1] for name in table["order"]] == ["n", "1", "2", "3"]  # as written, by 1, ...
    probs = orders[LETTERS].to_numpy().reshape(4, -1, 4)  # [orders, N, 4]
    single = np.take(LETTERS, probs.argmax(axis=-1))
    of_mean = np.take(LETTERS, probs.mean(axis=0).argmax(axis=-1))
    right = single == answers.to_numpy()
    mean_right = of_mean == answers.to_numpy()
    np.testing.assert_allclose(table["accuracy"], right.mean(axis=1))
    np.testing.assert_allclose(table["against_mean"], right.mean(axis=1) - mean_right.mean())
    np.testing.assert_allclose(table["changed"], (single != of_mean).mean(axis=1))
    assert (table["low"] < table["against_mean"]).all()
    assert (table["against_mean"] < table["high"]).all()
    differs = (single != single[0]).any(axis=0).mean()
    assert bias.changed == pytest.approx(differs)
    assert f"{differs:.1%}" in bias.describe()
    assert f"{table['accuracy'][0]:.1%}" in bias.describe()


def test_of_one_order_the_chosen_letters_stand_against_the_right_ones():
    orders, answers = orders_of((0, 0, 0, 3), orders=(0,))
    probs = mean_of(orders)
    bias = position_bias(probs.assign(order=0), probs, answers)
    chosen = np.take(LETTERS, probs[LETTERS].to_numpy().argmax(axis=1))
    expected = [(chosen == letter).mean() - (answers == letter).mean() for letter in LETTERS]
    assert bias.positions["excess"].tolist() == pytest.approx(expected)
    assert "chosen" in bias.title and bias.title != bias_of((0, 0, 0, 3)).title
    assert "tta=1" in bias.describe() and "d +" in bias.describe()
    assert list(bias.tables) == ["Positions"] and "\n" not in bias.describe()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two scored folds of four rows each, their probabilities by order and in the mean."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    orders = orders_of((0, 0, 1, 0), rows=8)[0]
    paths = RunPaths("bias")
    folds = pd.DataFrame({"id": list("01234567"), "fold": [0, 1] * 4})
    for k in (0, 1):
        held_out = folds["id"][folds["fold"] == k]
        part = orders[orders["id"].isin(held_out)]
        write_orders(paths.fold(k).orders("oof"), part)
        for split in ("oof", "test"):
            write_probabilities(paths.fold(k).probs(split), mean_of(part))
    probs = mean_of(orders).loc[[0, 2, 4, 6, 1, 3, 5, 7]]  # fold after fold
    return paths, preset("demo", n_folds=2), folds, probs, orders


def test_orders_are_pooled_over_the_folds(run):
    *arguments, orders = run
    pooled = pooled_orders(*arguments)
    key = ["order", "id"]
    pd.testing.assert_frame_equal(
        pooled.sort_values(key)[[*key, *LETTERS]].reset_index(drop=True),
        orders.sort_values(key)[[*key, *LETTERS]].reset_index(drop=True),
        check_dtype=False,
    )


def test_only_orders_of_all_folds_are_compared(run):
    *arguments, orders = run
    of_second_fold = arguments[0].fold(1).orders("oof")
    held_out = orders["id"].isin(list("1357"))
    write_orders(of_second_fold, orders[held_out & orders["order"].isin((0, 2))])
    assert set(pooled_orders(*arguments)["order"]) == {0, 2}
    of_second_fold.unlink()
    alone = pooled_orders(*arguments)
    assert len(alone) == 8 and alone["order"].eq(0).all()

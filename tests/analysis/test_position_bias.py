import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from vqa_utils.analysis import figures
from vqa_utils.analysis.position_bias import beyond_deserved, pooled_orders, position_bias
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_orders, write_probabilities
from vqa_utils.presets import preset

LETTERS = list("abcd")


def orders_of(pull, orders=(0, 1, 2, 3), rows=300, seed=0, noise=0.5):
    """A model's probabilities by order: logits of the options, `pull` [4] at the places, and noise; and the answers."""
    rng = np.random.default_rng(seed)
    worth = rng.normal(size=(rows, 4))  # of the options, where they are written
    parts = []
    for order in orders:
        at_places = (
            np.roll(worth, -order, axis=1) + np.asarray(pull) + noise * rng.normal(size=(rows, 4))
        )
        probs = np.roll(softmax(at_places, axis=1), order, axis=1)
        ids = [str(i) for i in range(rows)]
        parts.append(pd.DataFrame(probs, columns=LETTERS).assign(id=ids, order=order))
    return pd.concat(parts, ignore_index=True), pd.Series(np.take(LETTERS, worth.argmax(axis=1)))


def mean_of(views):
    return views.groupby("id", sort=False)[LETTERS].mean().reset_index()


def bias_of(*args, **options):
    views, answers = orders_of(*args, **options)
    return position_bias(views, mean_of(views), answers)


def flagged(bias):
    return set(bias.places["place"][(bias.places["low"] > 0) | (bias.places["high"] < 0)])


def test_a_place_that_pulls_is_found_with_its_size():
    views, answers = orders_of((0, 0, 0.8, 0))
    bias = position_bias(views, mean_of(views), answers)
    orders = {order: part[LETTERS].to_numpy() for order, part in views.groupby("order")}
    at_c = np.mean(
        [probs[:, (2 + order) % 4].mean() for order, probs in orders.items()]
    )  # where the option at c was written
    assert bias.places["beyond"][2] == pytest.approx(at_c - 0.25) and 0.1 < at_c - 0.25 < 0.2
    assert bias.places["beyond"].sum() == pytest.approx(0) and flagged(bias) == set("abcd")
    said = f"c {100 * bias.places['beyond'][2]:+.2f} ({100 * bias.places['low'][2]:+.2f} to {100 * bias.places['high'][2]:+.2f})"
    assert (
        f"Over 4 orders, the probability at a place beyond what the options there deserve is, in points: {said}"
        in bias.describe()
    )
    assert "for all four together: a, b, c, d." in bias.describe()


def test_a_model_without_a_pull_is_called_biased_by_chance_alone():
    assert sum(bool(flagged(bias_of((0, 0, 0, 0), rows=200, seed=seed))) for seed in range(40)) <= 5
    exact = bias_of((0, 0, 0, 0), noise=0)
    assert not flagged(exact) and exact.changed == 0 and exact.orders["against_mean"].eq(0).all()
    assert (
        "a +0.00 (+0.00 to +0.00), d +0.00" in exact.describe()
        and "together: none." in exact.describe()
    )


def test_few_rows_say_nothing_beyond_chance():
    few, enough = (bias_of((0, 0, 3, 0), rows=rows).describe() for rows in (29, 30))
    assert (
        "With 29 rows, fewer than 30, that says nothing beyond chance." in few
        and "Beyond chance, at" not in few
    )
    assert "for all four together: a, b, c, d." in enough


def test_two_orders_compare_the_places_that_change_sides():
    bias = bias_of((0, 0, 0.8, 0), orders=(0, 2), noise=0.1)
    a, b, c, d = bias.places["beyond"]
    assert (
        a == pytest.approx(-c)
        and b == pytest.approx(-d)
        and c > 0.05
        and flagged(bias) >= set("ac")
    )
    assert "Two orders set a against c and b against d, no more." in bias.describe()


def test_what_is_beyond_deserved_of_one_row_by_hand():
    as_written, turned = [0.7, 0.1, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1]
    frames = {
        order: pd.DataFrame([probs], columns=LETTERS)
        for order, probs in ((0, as_written), (2, turned))
    }
    # a deserves 0.55 and has 0.7 at place a; there c deserves 0.2 and has 0.3
    assert beyond_deserved(frames)[0, 0] == pytest.approx((0.7 - 0.55 + 0.3 - 0.2) / 2)


def test_each_order_against_the_mean_of_all():
    orders, answers = orders_of((1.5, 0, 0, 0))
    bias = position_bias(orders, mean_of(orders), answers)
    table = bias.orders
    names = [
        "options as written",
        "options turned by 1",
        "options turned by 2",
        "options turned by 3",
    ]
    assert table["order"].tolist() == names
    probs = orders[LETTERS].to_numpy().reshape(4, -1, 4)  # [orders, N, 4]
    single = np.take(LETTERS, probs.argmax(axis=-1))
    of_mean = np.take(LETTERS, probs.mean(axis=0).argmax(axis=-1))
    right = single == answers.to_numpy()
    mean_right = of_mean == answers.to_numpy()
    np.testing.assert_allclose(table["accuracy"], right.mean(axis=1))
    np.testing.assert_allclose(table["against_mean"], right.mean(axis=1) - mean_right.mean())
    np.testing.assert_allclose(table["changed"], (single != of_mean).mean(axis=1))
    assert (table["low"] < table["against_mean"]).all() and (
        table["against_mean"] < table["high"]
    ).all()
    differs = (single != single[0]).any(axis=0).mean()
    assert bias.changed == pytest.approx(differs)
    assert f"{differs:.1%} of the rows" in bias.describe()
    assert f"{table['accuracy'][0]:.1%} are right" in bias.describe()


def test_of_one_order_the_chosen_letters_stand_against_the_right_ones():
    orders, answers = orders_of((0, 0, 0, 3), orders=(0,))
    probs = mean_of(orders)
    bias = position_bias(probs.assign(order=0), probs, answers)
    chosen = np.take(LETTERS, probs[LETTERS].to_numpy().argmax(axis=1))
    expected = [(chosen == k).mean() - (answers == k).mean() for k in LETTERS]
    assert bias.places["beyond"].tolist() == pytest.approx(expected)
    assert bias.title == "Rows where chosen less rows where right"
    assert "tta=1" in bias.describe() and "d +" in bias.describe()
    assert list(bias.tables) == ["Places"] and bias.describe().count("\n") == 0


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two scored folds of four rows each: what each view said, the probabilities, the folds."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    views = orders_of((0, 0, 1, 0), rows=8)[0]
    paths, folds = RunPaths("bias"), pd.DataFrame({"id": list("01234567"), "fold": [0, 1] * 4})
    for k in (0, 1):
        mine = views[views["id"].isin(folds["id"][folds["fold"] == k])]
        write_orders(paths.fold(k).orders("oof"), mine)
        for rows in ("oof", "test"):
            write_probabilities(paths.fold(k).probs(rows), mean_of(mine))
    return (
        paths,
        preset("demo", n_folds=2),
        folds,
        mean_of(views).loc[[0, 2, 4, 6, 1, 3, 5, 7]],
        views,
    )


def test_views_are_pooled_over_the_folds(run):
    paths, config, folds, probs, views = run
    pooled = pooled_orders(paths, config, folds, probs)
    key = ["order", "id"]
    pd.testing.assert_frame_equal(
        pooled.sort_values(key)[[*key, *LETTERS]].reset_index(drop=True),
        views.sort_values(key)[[*key, *LETTERS]].reset_index(drop=True),
        check_dtype=False,
    )


def test_only_views_of_all_folds_are_compared(run):
    paths, config, folds, probs, views = run
    write_orders(
        paths.fold(1).orders("oof"),
        views[views["id"].isin(list("1357")) & views["order"].isin((0, 2))],
    )
    assert set(pooled_orders(paths, config, folds, probs)["order"]) == {0, 2}
    paths.fold(1).orders("oof").unlink()
    alone = pooled_orders(paths, config, folds, probs)
    assert len(alone) == 8 and alone["order"].eq(0).all()


def test_the_figure_shows_the_tables():
    bias = bias_of((0, 0, 0.8, 0))
    left, right = figures.position_bias(bias.places, bias.orders, bias.title).axes
    assert left.get_title() == bias.title
    for ax, table, values in ((left, bias.places, "beyond"), (right, bias.orders, "against_mean")):
        np.testing.assert_allclose([bar.get_width() for bar in ax.patches], 100 * table[values])
        ends = [segment[:, 0] for segment in ax.collections[0].get_segments()]
        np.testing.assert_allclose(ends, 100 * table[["low", "high"]])
    assert len(figures.position_bias(bias.places, bias.orders.head(0), bias.title).axes) == 1

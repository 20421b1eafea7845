import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from vqa_utils.analysis import figures
from vqa_utils.analysis.position_bias import beyond_deserved, pooled_views, position_bias
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities, write_views
from vqa_utils.presets import preset

LETTERS = list("abcd")


def views_of(pull, orders=(0, 1, 2, 3), rotations=(0,), rows=300, seed=0, noise=0.5):
    """What a model says whose logits are those of the options, `pull` [4] at the places, and noise in each view; and the answers."""
    rng = np.random.default_rng(seed)
    worth = rng.normal(size=(rows, 4))  # of the options, where they are written
    parts = []
    for order in orders:
        for rotation in rotations:
            at_places = np.roll(worth, -order, axis=1) + np.asarray(pull) + noise * rng.normal(size=(rows, 4))
            probs = np.roll(softmax(at_places, axis=1), order, axis=1)
            ids = [str(i) for i in range(rows)]
            parts.append(pd.DataFrame(probs, columns=LETTERS).assign(id=ids, order=order, rotation=rotation))
    return pd.concat(parts, ignore_index=True), pd.Series(np.take(LETTERS, worth.argmax(axis=1)))


def mean_of(views):
    return views.groupby("id", sort=False)[LETTERS].mean().reset_index()


def bias_of(*args, **options):
    views, answers = views_of(*args, **options)
    return position_bias(views, mean_of(views), answers)


def flagged(bias):
    return set(bias.places["place"][(bias.places["low"] > 0) | (bias.places["high"] < 0)])


def test_a_place_that_pulls_is_found_with_its_size():
    views, answers = views_of((0, 0, 0.8, 0))
    bias = position_bias(views, mean_of(views), answers)
    orders = {order: part[LETTERS].to_numpy() for order, part in views.groupby("order")}
    at_c = np.mean([probs[:, (2 + order) % 4].mean() for order, probs in orders.items()])  # where the option at c was written
    assert bias.places["beyond"][2] == pytest.approx(at_c - 0.25) and 0.1 < at_c - 0.25 < 0.2
    assert bias.places["beyond"].sum() == pytest.approx(0) and flagged(bias) == set("abcd")
    said = (
        f"c {100 * bias.places['beyond'][2]:+.2f} ({100 * bias.places['low'][2]:+.2f} to {100 * bias.places['high'][2]:+.2f})"
    )
    assert (
        f"Over 4 orders, the probability at a place beyond what the options there deserve is, in points: {said}" in bias.read()
    )
    assert "for all four together: a, b, c, d." in bias.read()


def test_a_model_without_a_pull_is_called_biased_by_chance_alone():
    assert sum(bool(flagged(bias_of((0, 0, 0, 0), rows=200, seed=seed))) for seed in range(40)) <= 5
    exact = bias_of((0, 0, 0, 0), noise=0)
    assert not flagged(exact) and exact.changed == {"order": 0} and exact.views["against_mean"].eq(0).all()
    assert "a +0.00 (+0.00 to +0.00), d +0.00" in exact.read() and "together: none." in exact.read()


def test_few_rows_say_nothing_beyond_chance():
    few, enough = (bias_of((0, 0, 3, 0), rows=rows).read() for rows in (29, 30))
    assert "With 29 rows, fewer than 30, that says nothing beyond chance." in few and "Beyond chance, at" not in few
    assert "for all four together: a, b, c, d." in enough


def test_two_orders_compare_the_places_that_change_sides():
    bias = bias_of((0, 0, 0.8, 0), orders=(0, 2), noise=0.1)
    a, b, c, d = bias.places["beyond"]
    assert a == pytest.approx(-c) and b == pytest.approx(-d) and c > 0.05 and flagged(bias) >= set("ac")
    assert "Two orders set a against c and b against d, no more." in bias.read()


def test_what_is_beyond_deserved_of_one_row_by_hand():
    as_written, turned = [0.7, 0.1, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1]
    frames = {order: pd.DataFrame([probs], columns=LETTERS) for order, probs in ((0, as_written), (2, turned))}
    # a deserves 0.55 and has 0.7 at place a; there c deserves 0.2 and has 0.3
    assert beyond_deserved(frames)[0, 0] == pytest.approx((0.7 - 0.55 + 0.3 - 0.2) / 2)


def test_each_order_and_rotation_against_the_mean_of_all():
    views, answers = views_of((1.5, 0, 0, 0), rotations=(0, 180))
    bias = position_bias(views, mean_of(views), answers)
    assert bias.views["view"].tolist() == [
        "options as written", "options turned by 1", "options turned by 2", "options turned by 3",
        "picture as it is", "picture turned by 180°",
    ]  # fmt: skip
    probs = views[LETTERS].to_numpy().reshape(4, 2, -1, 4)  # [orders, rotations, N, 4]
    letters = {name: np.take(LETTERS, values.argmax(axis=-1)) for name, values in (
        ("orders", probs.mean(axis=1)), ("rotations", probs.mean(axis=0)), ("all", probs.mean(axis=(0, 1))))}  # fmt: skip
    single = np.concatenate([letters["orders"], letters["rotations"]])
    right = single == answers.to_numpy()
    all_right = letters["all"] == answers.to_numpy()
    np.testing.assert_allclose(bias.views["accuracy"], right.mean(axis=1))
    np.testing.assert_allclose(bias.views["against_mean"], right.mean(axis=1) - all_right.mean())
    np.testing.assert_allclose(bias.views["changed"], (single != letters["all"]).mean(axis=1))
    assert (bias.views["low"] < bias.views["against_mean"]).all() and (bias.views["against_mean"] < bias.views["high"]).all()
    differs = (letters["orders"] != letters["orders"][0]).any(axis=0).mean()
    assert bias.changed["order"] == pytest.approx(differs) and differs > bias.changed["rotation"] > 0
    assert f"The answer changes with the order in {differs:.1%} of the rows." in bias.read()
    assert (
        f"With the picture as it is alone (the mean over each order), {bias.views['accuracy'][4]:.1%} are right" in bias.read()
    )


def test_of_one_order_the_chosen_letters_stand_against_the_right_ones():
    views, answers = views_of((0, 0, 0, 3), orders=(0,), rotations=(0, 180))
    probs = mean_of(views)
    bias = position_bias(views, probs, answers)
    chosen = np.take(LETTERS, probs[LETTERS].to_numpy().argmax(axis=1))
    assert bias.places["beyond"].tolist() == pytest.approx([(chosen == k).mean() - (answers == k).mean() for k in LETTERS])
    assert bias.title == "Rows where chosen less rows where right" and list(bias.changed) == ["rotation"]
    assert "share no more than one order of their options (as with tta=1)" in bias.read() and "d +" in bias.read()
    alone = position_bias(probs.assign(order=0, rotation=0), probs, answers)
    assert list(alone.tables) == ["Places"] and alone.read().count("\n") == 0 and alone.places.equals(bias.places)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two scored folds of four rows each: what each view said, the probabilities, the folds."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    views = views_of((0, 0, 1, 0), rows=8)[0]
    paths, folds = RunPaths("bias"), pd.DataFrame({"id": list("01234567"), "fold": [0, 1] * 4})
    for k in (0, 1):
        mine = views[views["id"].isin(folds["id"][folds["fold"] == k])]
        write_views(paths.fold(k).views("oof"), mine)
        for rows in ("oof", "test"):
            write_probabilities(paths.fold(k).probs(rows), mean_of(mine))
    return paths, preset("demo", n_folds=2), folds, mean_of(views).loc[[0, 2, 4, 6, 1, 3, 5, 7]], views


def test_views_are_pooled_over_the_folds(run):
    paths, config, folds, probs, views = run
    pooled = pooled_views(paths, config, folds, probs)
    key = ["order", "id"]
    pd.testing.assert_frame_equal(
        pooled.sort_values(key)[[*key, *LETTERS]].reset_index(drop=True),
        views.sort_values(key)[[*key, *LETTERS]].reset_index(drop=True),
        check_dtype=False,
    )


def test_only_views_of_all_folds_are_compared(run):
    paths, config, folds, probs, views = run
    write_views(paths.fold(1).views("oof"), views[views["id"].isin(list("1357")) & views["order"].isin((0, 2))])
    assert set(pooled_views(paths, config, folds, probs)["order"]) == {0, 2}
    paths.fold(1).views("oof").unlink()
    alone = pooled_views(paths, config, folds, probs)
    assert len(alone) == 8 and alone[["order", "rotation"]].eq(0).all(axis=None)


def test_the_figure_shows_the_tables():
    bias = bias_of((0, 0, 0.8, 0))
    left, right = figures.position_bias(bias.places, bias.views, bias.title).axes
    assert left.get_title() == bias.title
    for ax, table, values in ((left, bias.places, "beyond"), (right, bias.views, "against_mean")):
        np.testing.assert_allclose([bar.get_width() for bar in ax.patches], 100 * table[values])
        ends = [segment[:, 0] for segment in ax.collections[0].get_segments()]
        np.testing.assert_allclose(ends, 100 * table[["low", "high"]])
    assert len(figures.position_bias(bias.places, bias.views.head(0), bias.title).axes) == 1

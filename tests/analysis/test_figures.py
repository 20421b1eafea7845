"""Figures show the numbers they are given."""

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from vqa_utils.analysis import figures

TRAIN = pd.DataFrame({
    "id": ["p", "q", "r", "s"], "question": ["is it red?", "색은?", "is it <b>?", "색은?"],
    "a": ["yes", "빨강", "yes", "흰색"], "b": ["no", "파랑", "no", "회색"],
    "c": ["maybe", "흰색", "maybe", "빨강"], "d": ["unknown", "회색", "unknown", "파랑"],
    "answer": ["a", "b", "a", "d"],
})  # fmt: skip
RIGHT, WRONG = (0.7, 0.1, 0.1, 0.1), (0.05, 0.05, 0.85, 0.05)
PROBS = pd.DataFrame([RIGHT, WRONG, WRONG, RIGHT], columns=list("abcd"))


def bar_heights(figure):
    return [bar.get_height() for bar in figure.axes[0].patches if bar.get_height() > 0]


def bar_widths(ax):
    return [bar.get_width() for bar in ax.patches]


def interval_ends(ax):
    return [segment[:, 0].tolist() for segment in ax.collections[0].get_segments()]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_balance_counts_the_letters():
    assert bar_heights(figures.answer_balance(TRAIN)) == [2, 1, 1]


def test_the_balance_of_folds_counts_the_letters_in_each():
    folds = pd.DataFrame({"id": TRAIN["id"], "fold": [0, 1, 0, 1]})
    assert sorted(bar_heights(figures.fold_balance(folds, TRAIN))) == [1, 1, 2]


def test_the_confusion_counts_pairs_of_right_and_chosen_letters():
    counts = np.array(texts(figures.confusion(PROBS, TRAIN["answer"]))).astype(int).reshape(4, 4)
    expected = np.zeros((4, 4), dtype=int)
    for right, chosen in ((0, 0), (1, 2), (0, 2), (3, 0)):
        expected[right, chosen] += 1
    assert (counts == expected).all()


def test_tokens_with_a_label_have_another_colour():
    figure = figures.label_mask(["<s>", "\n", "b"], [False, False, True])
    assert texts(figure) == ["<s>", "⏎", "b"]
    colours = [to_hex(text.get_bbox_patch().get_facecolor()) for text in figure.axes[0].texts]
    assert colours == [figures.TOKEN_BOX, figures.TOKEN_BOX, figures.LABEL_BOX]


def test_accuracies_are_bars_with_intervals_if_there_are_any():
    table = pd.DataFrame({"group": ["x"], "accuracy": [0.75], "rows": [4]})
    (ax,) = figures.accuracy_by(table, "t").axes
    assert bar_widths(ax) == [0.75] and not ax.collections
    (ax,) = figures.accuracy_by(table.assign(low=0.5, high=1.0), "t").axes
    assert interval_ends(ax) == [[0.5, 1.0]]


def test_shares_of_places_and_orders_are_shown_in_points():
    positions = pd.DataFrame({"position": list("ab"), "excess": [0.1, -0.1]})
    positions = positions.assign(low=[0.05, -0.2], high=[0.2, 0])
    orders = pd.DataFrame({"order": ["as written"], "against_mean": [0.02]})
    orders = orders.assign(low=-0.01, high=0.05)
    left, right = figures.position_bias(positions, orders, "title").axes
    assert left.get_title() == "title"
    np.testing.assert_allclose(bar_widths(left), [10, -10])
    np.testing.assert_allclose(interval_ends(left), [[5, 20], [-20, 0]])
    np.testing.assert_allclose(bar_widths(right), [2])
    np.testing.assert_allclose(interval_ends(right), [[-1, 5]])
    assert len(figures.position_bias(positions, orders.head(0), "title").axes) == 1


def test_reliability_has_a_dot_a_bin_and_a_panel_a_set():
    figure = figures.reliability_diagrams({"one": PROBS, "two": PROBS}, TRAIN["answer"])
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    dots = figure.axes[0].collections[0]
    points = {tuple(point) for point in dots.get_offsets().data.round(6).tolist()}
    assert points == {(0.7, 0.5), (0.85, 0.0)}
    assert to_hex(dots.get_facecolor()[0]) == to_hex(figures.RELIABILITY_DOTS)


def test_training_curves_show_the_loss_and_the_scores_if_there_are_any():
    log = pd.DataFrame({"epoch": [0.5, 1.0], "loss": [2.0, 1.0]})
    epochs = pd.DataFrame({"epoch": [1], "accuracy": [0.5], "log_loss": [1.2]})
    loss, *scores = figures.training_curves(log, epochs).axes
    assert loss.lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert [ax.lines[0].get_ydata().tolist() for ax in scores] == [[0.5], [1.2]]
    assert len(figures.training_curves(log, epochs.head(0)).axes) == 1


def test_lengths_and_sizes_have_a_panel_each():
    sizes = pd.DataFrame({"split": ["train"], "width": [3], "height": [4]})
    assert len(figures.text_lengths(TRAIN, TRAIN).axes) == 2
    (ax,) = figures.image_sizes(sizes).axes
    assert ax.collections[0].get_offsets().tolist() == [[3, 4]]


def test_confidences_are_shares_of_the_rows():
    (ax,) = figures.confidences({"oof": PROBS}).axes
    outline = ax.collections[0].get_paths()[0].vertices
    assert outline[:, 1].max() == 0.5  # two of the four rows share a bin
    assert outline[:, 0].min() >= figures.CHANCE and outline[:, 0].max() <= 1


def test_agreement_is_written_into_the_cells():
    table = pd.DataFrame([[1.0, 0.5], [0.5, 1.0]], index=["x", "y"], columns=["x", "y"])
    assert texts(figures.agreement(table)) == ["1.000", "0.500", "0.500", "1.000"]


def test_tables_of_a_notebook_have_three_decimals():
    frame = pd.DataFrame({"accuracy": [1.0, 0.97], "p": [1e-19, 0.5], "rows": [4, 30]})
    html = frame.to_html(border=0)
    for cell in ("1.000", "0.970", "&lt;0.001", "0.500", "4", "30"):
        assert f"<td>{cell}</td>" in html

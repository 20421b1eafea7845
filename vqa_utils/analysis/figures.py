"""Draw the notebooks' figures. Each function returns a closed matplotlib figure."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import confusion_matrix

from vqa_utils.metrics import number_text, option_matrix, predictions, reliability
from vqa_utils.prompts import LETTERS

# The colours. Several sets of rows, such as train and test, take those of PALETTE in its order
PALETTE = "deep"
BLUE = sns.color_palette(PALETTE)[0]
GREY_DASHES: dict[str, Any] = {
    "color": "grey",
    "linestyle": "--",
}  # chance, an even share, no difference
BARS = BLUE
INTERVALS = "black"
HEATMAP = "crest"
RELIABILITY_DOTS = BLUE
RELIABILITY_DIAGONAL = GREY_DASHES  # confidence as high as accuracy
LABEL_BOX = "#f2b04b"  # amber: the token that the loss sees
TOKEN_BOX = "#eef1f5"  # light grey: all other tokens

CHANCE = 1 / len(LETTERS)
SHORT_NAME = 8  # characters; a longer one, such as a run's, makes its figure larger
DOT_SIZES = (20, 250)  # points^2, of the bin with the fewest rows and of that with the most

# Matplotlib's own font, and for glyphs that it lacks, Hangul's: fonts/README.md
FONTS = ["DejaVu Sans"]
HANGUL = Path(__file__).parent / "fonts" / "NotoSansKR-Hangul.otf"
if HANGUL.exists():  # a notebook that carries the package goes without
    font_manager.fontManager.addfont(HANGUL)
    FONTS.append("Noto Sans KR")

# 80 dots an inch keep the committed notebooks small. A `$` in a label is one, and begins no formula
STYLE = {"figure.dpi": 80, "font.family": FONTS, "text.parse_math": False}
sns.set_theme(style="whitegrid", palette=PALETTE, rc=STYLE)
# Nor does it in a table that a notebook shows, whose scores look as they do elsewhere
pd.set_option("display.html.use_mathjax", False)
pd.set_option("display.float_format", number_text)


def answer_balance(train: pd.DataFrame) -> Figure:
    """Rows by right letter, with the even share as a line."""
    fig, ax = plt.subplots(figsize=(5, 3))
    sns.countplot(train, x="answer", order=list(LETTERS), ax=ax)
    ax.axhline(len(train) * CHANCE, **GREY_DASHES)
    ax.set(title="Right letters", ylabel="rows")
    return _done(fig)


def text_lengths(train: pd.DataFrame, test: pd.DataFrame) -> Figure:
    """Characters of questions and of options, train against test."""
    rows = pd.concat([train.assign(split="train"), test.assign(split="test")])
    lengths = {
        "question, characters": rows["question"].str.len(),
        "longest option, characters": rows[list(LETTERS)].map(len).max(axis=1),
    }
    rows = rows.assign(**lengths)
    fig, axes = plt.subplots(1, 2, figsize=(11, 3))
    for ax, column in zip(axes, lengths, strict=True):
        # Each split has an area of 1, so that splits of different sizes compare
        sns.histplot(rows, x=column, hue="split", stat="density", common_norm=False, ax=ax)
        ax.set(ylabel="density")
    axes[0].get_legend().remove()  # the same as the other one
    _legend_at_right(axes[1])
    return _done(fig)


def image_sizes(sizes: pd.DataFrame) -> Figure:
    """Width against height of the images, in px."""
    fig, ax = plt.subplots(figsize=(6, 3.5))
    sns.scatterplot(sizes, x="width", y="height", hue="split", alpha=0.5, ax=ax)
    widest, highest = sizes["width"].max(), sizes["height"].max()
    ax.set(title="Image sizes, px", xlim=(0, 1.05 * widest), ylim=(0, 1.05 * highest))
    _legend_at_right(ax)
    return _done(fig)


def fold_balance(folds: pd.DataFrame, train: pd.DataFrame) -> Figure:
    """Rows by fold and right letter."""
    rows = folds.merge(train[["id", "answer"]])
    fig, ax = plt.subplots(figsize=(6, 3))
    sns.countplot(rows, x="fold", hue="answer", hue_order=list(LETTERS), ax=ax)
    ax.set(title="Right letters in each fold", ylabel="rows")
    _legend_at_right(ax)
    return _done(fig)


def label_mask(tokens: list[str], labelled: Iterable[bool], columns: int = 12) -> Figure:
    """One example's tokens in reading order; those that the loss sees are filled."""
    rows = -(-len(tokens) // columns)  # rounded up
    fig, ax = plt.subplots(figsize=(11, 0.34 * rows + 0.4))  # inches, 0.34 per line of tokens
    for i, (token, is_label) in enumerate(zip(tokens, labelled, strict=True)):
        colour = LABEL_BOX if is_label else TOKEN_BOX
        ax.text(
            i % columns,
            -(i // columns),  # the y axis points up: a later line is lower
            token.replace("\n", "⏎"),
            fontsize=7,
            ha="center",
            va="center",
            bbox={"boxstyle": "round", "facecolor": colour, "edgecolor": "none"},
        )
    ax.set(
        xlim=(-0.6, columns - 0.4),
        ylim=(-rows + 0.4, 0.6),
        title="The only token with a label is the answer's letter",
    )
    ax.axis("off")
    return _done(fig)


def training_curves(log: pd.DataFrame, epochs: pd.DataFrame) -> Figure:
    """The loss per step; accuracy and log loss on the held-out rows per epoch, if there are any."""
    columns = [] if epochs.empty else ["accuracy", "log_loss"]
    fig, axes = plt.subplots(1, 1 + len(columns), figsize=(5 + 4 * len(columns), 3), squeeze=False)
    loss, *scores = axes[0]  # squeeze=False keeps [1, panels], for one panel too
    loss.plot(log["epoch"], log["loss"], alpha=0.3)
    loss.plot(log["epoch"], log["loss"].rolling(10, min_periods=1).mean())
    loss.set(title="Training loss (and its mean over 10 steps)", xlabel="epoch")
    for ax, column in zip(scores, columns, strict=True):
        sns.lineplot(epochs, x="epoch", y=column, marker="o", ax=ax)
        ax.set(title=f"Held-out {column.replace('_', ' ')}", ylabel="")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _done(fig)


def confidences(probs: dict[str, pd.DataFrame]) -> Figure:
    """The probability of the chosen option, for each set of rows."""
    parts = []
    for name, frame in probs.items():
        confidence = option_matrix(frame).max(axis=1)
        parts.append(pd.DataFrame({"confidence": confidence, "rows": name}))
    fig, ax = plt.subplots(figsize=(7, 3))
    sns.histplot(
        pd.concat(parts, ignore_index=True),
        x="confidence",
        hue="rows",
        bins=20,
        binrange=(CHANCE, 1),  # the largest of four probabilities is no lower than chance
        stat="proportion",
        common_norm=False,
        element="step",
        ax=ax,
    )
    ax.set(title="Probability of the chosen option", ylabel="share of rows")
    _legend_at_right(ax)
    return _done(fig)


def agreement(table: pd.DataFrame) -> Figure:
    """How often two members choose the same letter."""
    longest = max(len(name) for name in table.index)
    for_names = 0.1 * max(0, longest - SHORT_NAME)  # inches, 0.1 per character
    fig, ax = plt.subplots(figsize=(4.5 + for_names, 3.5 + for_names))
    sns.heatmap(table, annot=True, fmt=".3f", vmin=0.5, vmax=1, cmap=HEATMAP, ax=ax)
    ax.set(title="Agreement on the test rows")
    return _done(fig)


def confusion(probs: pd.DataFrame, answers: pd.Series) -> Figure:
    """Right letters against chosen ones."""
    letters = list(LETTERS)
    counts = confusion_matrix(answers, predictions(probs), labels=letters)
    table = pd.DataFrame(counts, index=letters, columns=letters)
    fig, ax = plt.subplots(figsize=(4.5, 3.5))
    sns.heatmap(table, annot=True, fmt="d", cmap=HEATMAP, ax=ax)
    ax.set(title="Out-of-fold answers", xlabel="chosen", ylabel="right")
    ax.tick_params(axis="y", rotation=0)
    return _done(fig)


def accuracy_by(table: pd.DataFrame, title: str) -> Figure:
    """Bars of accuracy, with intervals if they are there.

    Args:
        table: `group`, `accuracy`, `rows`, and `low`, `high` if known.
        title: above the bars.
    """
    fig, ax = plt.subplots(figsize=(8, 0.35 * len(table) + 1.2))
    labels = table["group"].astype(str) + " (" + table["rows"].astype(str) + ")"
    sns.barplot(x=table["accuracy"], y=labels, ax=ax, color=BARS)
    if "low" in table:
        # barplot puts the lines of the table at y = 0, 1, 2, ...
        ax.hlines(range(len(table)), table["low"], table["high"], color=INTERVALS)
    ax.axvline(CHANCE, **GREY_DASHES)
    ax.set(title=f"{title} (dashed: chance)", xlim=(0, 1), ylabel="")
    return _done(fig)


def position_bias(positions: pd.DataFrame, orders: pd.DataFrame, title: str) -> Figure:
    """Excess at each position, and each order's gain over the mean.

    Args:
        positions: `position`, `excess`, `low`, `high` (shares).
        orders: `order`, `against_mean`, `low`, `high` (shares); without lines it has no panel.
        title: of the panel of positions: what `excess` is.
    """
    panels = 2 if len(orders) else 1
    fig, axes = plt.subplots(1, panels, figsize=(6 * panels, 3.2), squeeze=False)
    of_positions, *of_orders = axes[0]
    _bars_in_points(of_positions, positions, "position", "excess")
    of_positions.set(title=title, xlabel="points, with intervals that hold together in 95 %")
    for ax in of_orders:
        _bars_in_points(ax, orders, "order", "against_mean")
        ax.set(
            title="Accuracy of an order alone, against the mean of all",
            xlabel="points, with the 95 % interval",
        )
    return _done(fig)


def reliability_diagrams(sets: dict[str, pd.DataFrame], answers: pd.Series) -> Figure:
    """Confidence against accuracy, a panel for each set of probabilities of the same rows.

    The dots' sizes compare between the panels.
    """
    tables = {name: reliability(probs, answers) for name, probs in sets.items()}
    most_rows = max(table["rows"].max() for table in tables.values())
    fig, axes = plt.subplots(1, len(tables), figsize=(5.2 * len(tables), 4), squeeze=False)
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        ax.plot([0, 1], [0, 1], **RELIABILITY_DIAGONAL)
        sns.scatterplot(
            table,
            x="confidence",
            y="accuracy",
            size="rows",
            sizes=DOT_SIZES,
            size_norm=(1, most_rows),
            color=RELIABILITY_DOTS,
            ax=ax,
        )
        ax.set(title=title, xlim=(0.2, 1.05), ylim=(-0.05, 1.05))
        _legend_at_right(ax)
    return _done(fig)


def _bars_in_points(ax: Axes, table: pd.DataFrame, labels: str, values: str) -> None:
    """Bars of shares with their intervals, in points; the labels stand at the left."""
    sns.barplot(x=100 * table[values], y=table[labels], ax=ax, color=BARS)
    ax.hlines(range(len(table)), 100 * table["low"], 100 * table["high"], color=INTERVALS)
    ax.axvline(0, **GREY_DASHES)
    ax.set(ylabel="")


def _legend_at_right(ax: Axes) -> None:
    """Move the legend out of the axes: it covers no data."""
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1))


def _done(fig: Figure) -> Figure:
    fig.tight_layout()
    plt.close(fig)  # a notebook shows the returned figure; an open one would be shown twice
    return fig

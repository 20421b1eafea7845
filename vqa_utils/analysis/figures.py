"""The notebooks' figures. Each function returns a closed matplotlib figure, which a notebook shows once."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from vqa_utils.metrics import predictions, reliability
from vqa_utils.prompts import LETTERS

sns.set_theme(style="whitegrid", palette="deep", rc={"figure.dpi": 80})


def answer_balance(train: pd.DataFrame) -> Figure:
    """Rows by right letter, with the even share as a line."""
    fig, ax = plt.subplots(figsize=(5, 3))
    sns.countplot(train, x="answer", order=list(LETTERS), ax=ax)
    ax.axhline(len(train) / len(LETTERS), color="grey", linestyle="--")
    ax.set(title="Right letters", ylabel="rows")
    return _done(fig)


def text_lengths(train: pd.DataFrame, test: pd.DataFrame) -> Figure:
    """Characters of questions and of options, train against test."""
    rows = pd.concat([train.assign(split="train"), test.assign(split="test")])
    rows["question, characters"] = rows["question"].str.len()
    rows["longest option, characters"] = rows[list(LETTERS)].map(len).max(axis=1)
    fig, axes = plt.subplots(1, 2, figsize=(10, 3))
    for ax, column in zip(axes, rows.columns[-2:], strict=True):
        sns.histplot(rows, x=column, hue="split", stat="density", common_norm=False, ax=ax)
    return _done(fig)


def image_sizes(sizes: pd.DataFrame) -> Figure:
    """Width against height of the images, in px."""
    fig, ax = plt.subplots(figsize=(5, 3.5))
    sns.scatterplot(sizes, x="width", y="height", hue="split", alpha=0.5, ax=ax)
    ax.set(title="Image sizes, px", xlim=(0, None), ylim=(0, None))
    return _done(fig)


def fold_balance(folds: pd.DataFrame, train: pd.DataFrame) -> Figure:
    """Rows by fold and right letter."""
    fig, ax = plt.subplots(figsize=(6, 3))
    sns.countplot(
        folds.merge(train[["id", "answer"]]), x="fold", hue="answer", hue_order=list(LETTERS), ax=ax
    )
    ax.set(title="Right letters in each fold", ylabel="rows")
    return _done(fig)


def label_mask(tokens: list[str], labelled: Iterable[bool], columns: int = 12) -> Figure:
    """One example's tokens in reading order; those that the loss sees are filled."""
    rows = -(-len(tokens) // columns)
    fig, ax = plt.subplots(figsize=(11, 0.34 * rows + 0.4))
    for i, (token, is_label) in enumerate(zip(tokens, labelled, strict=True)):
        box = {
            "boxstyle": "round",
            "facecolor": "#f2b04b" if is_label else "#eef1f5",
            "edgecolor": "none",
        }
        ax.text(
            i % columns,
            -(i // columns),
            token.replace("\n", "⏎"),
            fontsize=7,
            ha="center",
            va="center",
            bbox=box,
        )
    ax.set(
        xlim=(-0.6, columns - 0.4),
        ylim=(-rows + 0.4, 0.6),
        title="The only token with a label is the answer's letter",
    )
    ax.axis("off")
    return _done(fig)


def training_curves(log: pd.DataFrame, epochs: pd.DataFrame) -> Figure:
    """The loss a step, and accuracy and log loss on the held-out rows an epoch, where any were held out."""
    columns = [] if epochs.empty else ["accuracy", "log_loss"]
    fig, axes = plt.subplots(1, 1 + len(columns), figsize=(5 + 4 * len(columns), 3), squeeze=False)
    loss, *scores = axes[0]
    loss.plot(log["epoch"], log["loss"], alpha=0.3)
    loss.plot(log["epoch"], log["loss"].rolling(10, min_periods=1).mean())
    loss.set(title="Training loss (and its mean over 10 steps)", xlabel="epoch")
    for ax, column in zip(scores, columns, strict=True):
        sns.lineplot(epochs, x="epoch", y=column, marker="o", ax=ax)
        ax.set(title=f"Held-out {column.replace('_', ' ')}", ylabel="")
    return _done(fig)


def confidences(probs: dict[str, pd.DataFrame]) -> Figure:
    """The probability of the chosen option, for each set of rows."""
    fig, ax = plt.subplots(figsize=(6, 3))
    rows = [
        frame[list(LETTERS)].max(axis=1).to_frame("confidence").assign(rows=name)
        for name, frame in probs.items()
    ]
    sns.histplot(pd.concat(rows, ignore_index=True), x="confidence", hue="rows", bins=20, binrange=(0.25, 1),
                 stat="proportion", common_norm=False, element="step", ax=ax)  # fmt: skip
    ax.set(title="Probability of the chosen option")
    return _done(fig)


def agreement(table: pd.DataFrame) -> Figure:
    """How often two members choose the same letter."""
    fig, ax = plt.subplots(figsize=(4.5, 3.5))
    sns.heatmap(table, annot=True, fmt=".3f", vmin=0.5, vmax=1, cmap="crest", ax=ax)
    ax.set(title="Agreement on the test rows")
    return _done(fig)


def confusion(probs: pd.DataFrame, answers: pd.Series) -> Figure:
    """Right letters against chosen ones."""
    fig, ax = plt.subplots(figsize=(4.5, 3.5))
    counts = confusion_matrix(answers, predictions(probs), labels=list(LETTERS))
    sns.heatmap(
        pd.DataFrame(counts, list(LETTERS), list(LETTERS)), annot=True, fmt="d", cmap="crest", ax=ax
    )
    ax.set(title="Out-of-fold answers", xlabel="chosen", ylabel="right")
    return _done(fig)


def accuracy_by(table: pd.DataFrame, title: str) -> Figure:
    """Bars of accuracy from a table with `group`, `accuracy`, `rows`; its interval from `low` to `high` where it is there."""
    fig, ax = plt.subplots(figsize=(8, 0.35 * len(table) + 1.2))
    labels = table["group"].astype(str) + " (" + table["rows"].astype(str) + ")"
    sns.barplot(x=table["accuracy"], y=labels, ax=ax, color=sns.color_palette()[0])
    if "low" in table:
        ax.hlines(range(len(table)), table["low"], table["high"], color="black")
    ax.axvline(0.25, color="grey", linestyle="--")
    ax.set(title=f"{title} (dashed: chance)", xlim=(0, 1), ylabel="")
    return _done(fig)


def position_bias(places: pd.DataFrame, orders: pd.DataFrame, title: str) -> Figure:
    """Points at each place beyond what is due there, and each order's accuracy against the mean of all, with intervals.

    Args:
        places: `place`, `beyond`, `low`, `high` (shares).
        orders: `order`, `against_mean`, `low`, `high` (shares); a panel of its own if it has lines.
        title: what `beyond` is.
    """
    panels = {
        title: (places, "place", "beyond", "points, with intervals that hold together in 95 %")
    }
    if len(orders):
        panels["Accuracy of an order alone, against the mean of all"] = (
            orders, "order", "against_mean", "points, with the 95 % interval",
        )  # fmt: skip
    fig, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 3.2), squeeze=False)
    for ax, (name, (table, labels, values, words)) in zip(axes[0], panels.items(), strict=True):
        sns.barplot(x=100 * table[values], y=table[labels], ax=ax, color=sns.color_palette()[0])
        ax.hlines(range(len(table)), 100 * table["low"], 100 * table["high"], color="black")
        ax.axvline(0, color="grey", linestyle="--")
        ax.set(title=name, xlabel=words, ylabel="")
    return _done(fig)


def reliability_diagrams(sets: dict[str, pd.DataFrame], answers: pd.Series) -> Figure:
    """The same rows' confidence against accuracy, a panel for each set of probabilities; the dots' sizes compare."""
    tables = [reliability(probs, answers) for probs in sets.values()]
    largest = max(table["rows"].max() for table in tables)
    fig, axes = plt.subplots(1, len(tables), figsize=(4.5 * len(tables), 4), squeeze=False)
    for ax, title, table in zip(axes[0], sets, tables, strict=True):
        ax.plot([0, 1], [0, 1], color="grey", linestyle="--")
        sns.scatterplot(
            table,
            x="confidence",
            y="accuracy",
            size="rows",
            sizes=(20, 250),
            size_norm=(1, largest),
            ax=ax,
        )
        ax.set(title=title, xlim=(0.2, 1.02), ylim=(0, 1.05))
        ax.legend(
            title="rows", loc="lower right"
        )  # where confidence is high and accuracy low, few dots are
    return _done(fig)


def _done(fig: Figure) -> Figure:
    fig.tight_layout()
    plt.close(fig)  # a notebook shows the returned figure; an open one would be shown twice
    return fig

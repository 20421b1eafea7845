"""Which rows are answered wrong: groups of questions, what chance makes of their differences, and the worst mistakes."""

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from vqa_utils.data.question_kinds import QUESTION_PATTERNS, question_kinds
from vqa_utils.ensembling.members import rows_of
from vqa_utils.metrics import accuracy_interval, correct, holm, predictions
from vqa_utils.prompts import LETTERS

MIN_ROWS = 20  # of a smaller group, accuracy is known to no better than 20 points
LEVEL = 0.05
NEGATION = r"아닌|아니|없는|없이|않|제외|\bnot?\b|n't\b|\bnone\b|\bwithout\b|\bexcept\b"
SURE = 0.9  # a wrong answer with so much confidence is one that no threshold would catch
LENGTH_RANKS = ("longest", "second", "third", "shortest")
BANDS = {
    0: "",
    0.5: "up to 0.5",
    0.7: "0.5 to 0.7",
    0.9: "0.7 to 0.9",
    0.99: "0.9 to 0.99",
    2: "above 0.99",
}


def question_groups(rows: pd.DataFrame, pixels: np.ndarray, clusters: pd.Series) -> pd.DataFrame:
    """The groups that each row is in, bool [N, G], named by two levels of columns: what they go by, and which one it is.

    Groups overlap; of groups with exactly the same rows, the first stands for all.

    Args:
        rows: `question`, `a` to `d`, `answer`.
        pixels: of each row's image, int [N]; 0 for unknown.
        clusters: of each row's question (see `clusters.question_clusters`).
    """
    labels = {
        "kind": question_kinds(rows),
        "cluster": clusters,
        "right option": length_ranks(rows),
        "image": size_quarters(pixels),
        "right letter": rows["answer"],
    }
    masks = {
        (by, group): (of_row == group).to_numpy()
        for by, of_row in labels.items()
        for group in _in_order(of_row)
    }
    question = rows["question"].str.lower()
    patterns = {"negation": NEGATION, **QUESTION_PATTERNS}
    masks |= {
        ("question has", name): question.str.contains(pattern).to_numpy()
        for name, pattern in patterns.items()
    }
    different: dict[bytes, tuple[str, str]] = {}
    for name, mask in masks.items():
        if mask.any():
            different.setdefault(mask.tobytes(), name)
    return pd.DataFrame(
        {name: masks[name] for name in different.values()},
        columns=pd.MultiIndex.from_tuples(different.values()),
    )


def length_ranks(rows: pd.DataFrame) -> pd.Series:
    """How long the right option is among the four, in characters: longest to shortest, or all alike; ties take the longer rank."""
    lengths = rows[list(LETTERS)].map(len).to_numpy()
    right = lengths[np.arange(len(rows)), rows["answer"].map(LETTERS.index)]
    ranks = np.take(LENGTH_RANKS, (lengths > right[:, None]).sum(axis=1))
    return pd.Series(
        np.where((lengths == right[:, None]).all(axis=1), "all alike", ranks), rows.index
    )


def size_quarters(pixels: np.ndarray) -> pd.Series:
    """Each image's quarter by size, named by its range in pixels; fewer where sizes repeat, one where all are the same."""
    known = pixels[pixels > 0]
    edges = np.quantile(known, (0.25, 0.5, 0.75), method="lower") if len(known) else np.array([])
    quarter = np.searchsorted(edges, pixels)
    frame = pd.DataFrame({"quarter": quarter, "pixels": pixels})[pixels > 0]
    ranges = frame.groupby("quarter")["pixels"].agg(["min", "max"])
    names = {
        k: f"{low:,} px" if low == high else f"{low:,} to {high:,} px"
        for k, low, high in ranges.itertuples()
    }
    return pd.Series(np.where(pixels > 0, pd.Series(quarter).map(names), "unknown size"))


def group_table(right: np.ndarray, groups: pd.DataFrame) -> pd.DataFrame:
    """How many rows of each group are right, and whether fewer than of the rest by more than chance.

    Args:
        right: bool [N].
        groups: bool [N, G], from `question_groups`.

    Returns:
        `by`, `group`, `rows`, `accuracy` with its 95 % interval from `low` to `high`, `rest` (the accuracy of all other rows),
        `p_worse` (Fisher's exact test, one-sided, adjusted for all tested groups by Holm's method; NaN for groups of fewer than
        `MIN_ROWS` rows or of all rows) and `worse` (`p_worse` below `LEVEL`).
    """
    table = _accuracies(right, groups)
    hits, rows, n = (
        (table["accuracy"] * table["rows"]).round().astype(int),
        table["rows"],
        len(right),
    )
    table["rest"] = (right.sum() - hits) / (n - rows).where(rows < n)
    tested = ((rows >= MIN_ROWS) & (rows < n)).to_numpy()
    table["p_worse"] = np.nan
    table.loc[tested, "p_worse"] = holm(hypergeom.cdf(hits[tested], n, right.sum(), rows[tested]))
    table["worse"] = table["p_worse"] < LEVEL
    return table


def describe_groups(table: pd.DataFrame) -> str:
    """The table of groups in words."""
    tested = table.dropna(subset="p_worse")
    if tested.empty:
        return f"No group has {MIN_ROWS} rows and others to compare with: too few to call one the hardest."
    hardest = tested.loc[tested["accuracy"].idxmin()]
    line = (
        f"Hardest of the {len(tested)} groups with {MIN_ROWS} rows or more: {hardest['by']}: {hardest['group']}, "
        f"{hardest['accuracy']:.1%} right of {hardest['rows']} rows (95 % interval {hardest['low']:.1%} to {hardest['high']:.1%}), "
        f"{hardest['rest']:.1%} of the others."
    )
    worse = tested[tested["worse"]].sort_values("accuracy")
    names = "; ".join(f"{row.by}: {row.group} ({row.accuracy:.1%})" for row in worse.itertuples())
    return f"{line}\nWorse than the rest beyond chance: {names or 'none'}."


def describe_spread(table: pd.DataFrame) -> str:
    """Between what accuracies the groups with enough rows lie, in words."""
    enough = table[table["rows"] >= MIN_ROWS]
    if enough.empty:
        return f"No group has {MIN_ROWS} rows; the bars of so few say little."
    low, high = enough["accuracy"].min(), enough["accuracy"].max()
    found = f"The {len(enough)} groups here with {MIN_ROWS} rows or more lie between {low:.1%} and {high:.1%}"
    if len(enough) == 1:
        found = f"The one group here with {MIN_ROWS} rows or more has {low:.1%} right"
    return f"{found}; lines are intervals, of no length where all rows are right."


def confidence_table(probs: pd.DataFrame, right: np.ndarray) -> pd.DataFrame:
    """How many rows are right in each band of confidence: `confidence`, `rows`, `accuracy`, `low`, `high`; empty ones left out."""
    bands = pd.cut(probs[list(LETTERS)].max(axis=1), list(BANDS), labels=list(BANDS.values())[1:])
    groups = {
        ("confidence", band): (bands == band).to_numpy()
        for band in bands.cat.categories
        if (bands == band).any()
    }
    return (
        _accuracies(right, pd.DataFrame(groups))
        .drop(columns="by")
        .rename(columns={"group": "confidence"})
    )


def describe_confidence(table: pd.DataFrame) -> str:
    """The table of confidence in words."""
    first, last = table.iloc[0], table.iloc[-1]
    if len(table) == 1:
        return f"All rows have a confidence of {first['confidence']}; {first['accuracy']:.1%} of them are right."
    return (
        f"{last['rows'] / table['rows'].sum():.1%} of the rows have a confidence of {last['confidence']}, and {last['accuracy']:.1%} "
        f"of these are right; at {first['confidence']} it is {first['accuracy']:.1%} of {first['rows']} rows."
    )


def describe_confusion(probs: pd.DataFrame, answers: pd.Series) -> str:
    """How many rows are right, and which letter is most often taken for which, in words."""
    chosen, right = predictions(probs).to_numpy(), correct(probs, answers)
    low, high = accuracy_interval(right)
    line = f"{right.mean():.1%} of the rows are right (95 % interval {low:.1%} to {high:.1%}); they are on the diagonal."
    if right.all():
        return line
    pairs = pd.DataFrame({"answer": answers.to_numpy(), "chosen": chosen})[~right].value_counts()
    (answer, letter), count = pairs.index[0], pairs.iloc[0]
    return f"{line}\nOf the {(~right).sum()} others, {letter} instead of {answer} is the most frequent kind: {count} rows."


def worst_mistakes(probs: pd.DataFrame, train: pd.DataFrame, count: int) -> pd.DataFrame:
    """The wrong rows with the least probable right answer.

    Args:
        probs: `id`, `a` to `d`, and `fold` where known.
        train: the train rows.
        count: of mistakes at most.

    Returns:
        The row's columns, its `fold` where known, `kind` of question, `chosen` letter, `p_answer` and `p_chosen` (the
        confidence), with the row's place in `probs` as index.
    """
    rows = (
        rows_of(probs, train)
        .drop(columns="paraphrases", errors="ignore")
        .assign(chosen=predictions(probs).to_numpy())
    )
    rows["kind"] = question_kinds(rows)
    if "fold" in probs:
        rows["fold"] = probs["fold"].to_numpy()
    values = probs[list(LETTERS)].to_numpy()
    for name, letter in (("p_answer", rows["answer"]), ("p_chosen", rows["chosen"])):
        rows[name] = values[np.arange(len(rows)), letter.map(LETTERS.index)]
    return rows[rows["chosen"] != rows["answer"]].nsmallest(count, "p_answer")


def describe_mistakes(mistakes: pd.DataFrame, right: np.ndarray) -> str:
    """How many of the wrong rows `worst_mistakes` lists, in words."""
    wrong = int((~right).sum())
    if not wrong:
        return f"None of the {len(right)} rows is wrong."
    return (
        f"{len(mistakes)} of {wrong} mistakes, the least probable right option (✓) first, {mistakes['p_answer'].iloc[0]:.1%} of "
        f"the probability; {(mistakes['p_chosen'] > SURE).sum()} of them chose another (bold) with more than {SURE:.0%}."
    )


def _accuracies(right: np.ndarray, groups: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for (by, group), mask in groups.items():
        low, high = accuracy_interval(right[mask])
        lines.append(
            {
                "by": by,
                "group": group,
                "rows": int(mask.sum()),
                "accuracy": right[mask].mean(),
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(lines)


def _in_order(labels: pd.Series) -> list[str]:
    """The largest group first."""
    return list(labels.value_counts().index)

"""Analyse wrong answers: hard groups beyond chance, confidence, worst mistakes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from vqa_utils.data.question_kinds import question_kinds
from vqa_utils.ensembling.members import rows_of
from vqa_utils.language import called, said
from vqa_utils.metrics import (
    accuracy_interval,
    at_letter,
    correct,
    holm,
    one_hot,
    option_matrix,
    predictions,
    reliability,
)
from vqa_utils.prompts import LETTERS

MIN_ROWS = 20  # of a smaller group, accuracy is known to no better than 20 points
LEVEL = 0.05
SURE = 0.9  # a wrong answer with so much confidence is one that no threshold would catch
BAND_EDGES = (0, 0.5, 0.7, 0.9, 0.99, 2)  # the last one above 1: rounding may lift a sure row
BANDS = ("up to 0.5", "0.5 to 0.7", "0.7 to 0.9", "0.9 to 0.99", "above 0.99")


def group_table(right: np.ndarray, groups: pd.DataFrame) -> pd.DataFrame:
    """Compare each group's accuracy with that of all other rows.

    Args:
        right: bool [N].
        groups: bool [N, G], from `question_groups.question_groups`.

    Returns:
        `by`, `group`, `rows`, `accuracy` with Wilson's 95 % interval from `low` to `high`, `rest`
        (the accuracy of all other rows), `p_worse` (Fisher's exact test, one-sided, adjusted for
        all tested groups by Holm's method; NaN for groups of fewer than `MIN_ROWS` rows or of all
        rows) and `worse` (`p_worse` below `LEVEL`).
    """
    lines = []
    for by, group in groups.columns:
        line = _accuracy_line(right[groups[by, group]])
        lines.append({"by": by, "group": group, **line})
    table = pd.DataFrame(lines)

    total = len(right)
    rows = table["rows"].to_numpy()  # [G]
    right_rows = groups.to_numpy().T.astype(int) @ right  # [G]
    is_part = rows < total
    other_rows = np.where(is_part, total - rows, np.nan)  # [G], NaN of a group of all rows
    table["rest"] = (right.sum() - right_rows) / other_rows
    tested = is_part & (rows >= MIN_ROWS)
    # Of `total` rows with `right.sum()` right ones, a group draws its rows without replacement
    p_values = hypergeom.cdf(right_rows[tested], total, right.sum(), rows[tested])
    table["p_worse"] = np.nan
    table.loc[tested, "p_worse"] = holm(p_values)
    table["worse"] = table["p_worse"] < LEVEL
    return table


def describe_groups(table: pd.DataFrame) -> str:
    """Name the hardest group, and all that are worse than the rest beyond chance."""
    tested = table.dropna(subset="p_worse")
    if tested.empty:
        return said(
            "No group has {least} rows and others to compare with: too few to call one the hardest.",
            least=MIN_ROWS,
        )
    hardest = tested.loc[tested["accuracy"].idxmin()]
    worse = tested[tested["worse"]].sort_values("accuracy")
    names = []
    for line in worse.to_dict("records"):
        names.append(f"{line['by']}: {line['group']} ({line['accuracy']:.1%})")
    return said(
        "Hardest of the {groups} groups with {least} rows or more: {name}, {accuracy} right of "
        "{rows} rows (95 % interval {low} to {high}), {rest} of the others.\n"
        "Worse than the rest beyond chance: {worse}.",
        groups=len(tested),
        least=MIN_ROWS,
        name=f"{hardest['by']}: {hardest['group']}",
        accuracy=f"{hardest['accuracy']:.1%}",
        rows=hardest["rows"],
        low=f"{hardest['low']:.1%}",
        high=f"{hardest['high']:.1%}",
        rest=f"{hardest['rest']:.1%}",
        worse="; ".join(names) or called("none"),
    )


def describe_spread(table: pd.DataFrame) -> str:
    """Give the lowest and highest accuracy of the groups with enough rows, in words."""
    enough = table[table["rows"] >= MIN_ROWS]
    if enough.empty:
        return said(
            "No group has {least} rows; the bars of so few say little.",
            least=MIN_ROWS,
        )
    low, high = f"{enough['accuracy'].min():.1%}", f"{enough['accuracy'].max():.1%}"
    if len(enough) == 1:
        return said(
            "The one group here with {least} rows or more has {low} right; lines are 95 % intervals.",
            least=MIN_ROWS,
            low=low,
        )
    return said(
        "The {groups} groups here with {least} rows or more lie between {low} and {high}; "
        "lines are 95 % intervals.",
        groups=len(enough),
        least=MIN_ROWS,
        low=low,
        high=high,
    )


def reliability_table(sets: Mapping[str, pd.DataFrame], answers: pd.Series) -> pd.DataFrame:
    """Compare confidence with accuracy in several sets of probabilities of the same rows.

    Returns:
        `probabilities` (the set), `confidence`, `accuracy`, `rows`: one line per set and bin.
    """
    tables = []
    for name, probs in sets.items():
        table = reliability(probs, answers)
        table.insert(0, "probabilities", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def confidence_table(probs: pd.DataFrame, right: np.ndarray) -> pd.DataFrame:
    """Accuracy by band of confidence, without empty bands.

    Returns:
        `confidence` (the band), `rows`, `accuracy`, `low`, `high`.
    """
    confidence = option_matrix(probs).max(axis=1)  # [N]
    band_of_row = pd.cut(confidence, BAND_EDGES, labels=BANDS)  # closed above: 0.9 is in 0.7 to 0.9
    lines = []
    for band in BANDS:
        in_band = band_of_row == band
        if in_band.any():
            lines.append({"confidence": band, **_accuracy_line(right[in_band])})
    return pd.DataFrame(lines)


def describe_confidence(table: pd.DataFrame) -> str:
    """Compare the most with the least confident rows, in words."""
    least, most = table.iloc[0], table.iloc[-1]
    if len(table) == 1:
        return said(
            "All rows have a confidence of {band}; {right} of them are right.",
            band=least["confidence"],
            right=f"{least['accuracy']:.1%}",
        )
    share = most["rows"] / table["rows"].sum()
    return said(
        "{share} of the rows have a confidence of {most}, and {right} of these are right; "
        "at {least} it is {least_right} of {rows} rows.",
        share=f"{share:.1%}",
        most=most["confidence"],
        right=f"{most['accuracy']:.1%}",
        least=least["confidence"],
        least_right=f"{least['accuracy']:.1%}",
        rows=least["rows"],
    )


def confidences(probs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Summarise the confidence in each set of rows.

    Args:
        probs: `a` to `d`, by set.

    Returns:
        `rows`, and the `mean`, `min` and `median` probability of the chosen option; a line for each
        set.
    """
    lines = {}
    for name, frame in probs.items():
        confidence = option_matrix(frame).max(axis=1)  # [N]
        lines[name] = {
            "rows": len(confidence),
            "mean": confidence.mean(),
            "min": confidence.min(),
            "median": np.median(confidence),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def least_certain(rows: pd.DataFrame, probs: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the rows with the lowest confidence, at most `count`, the lowest first.

    Args:
        rows: such as those of test.csv.
        probs: `a` to `d`, in the order of `rows`.
        count: of rows at most.

    Returns:
        The rows' columns, the `chosen` letter and `p_chosen` (the confidence).
    """
    chosen = predictions(probs).to_numpy()
    confidence = option_matrix(probs).max(axis=1)  # [N]
    return rows.assign(chosen=chosen, p_chosen=confidence).nsmallest(count, "p_chosen")


def letter_table(sets: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Compare how often each letter occurs in several sets of letters.

    Returns:
        `letter`, and its share in each set.
    """
    shares = {"letter": list(LETTERS)}
    for name, letters in sets.items():
        shares[name] = one_hot(letters).mean(axis=0)  # [4]
    return pd.DataFrame(shares)


def describe_letters(table: pd.DataFrame) -> str:
    """Name the letter whose shares in the first and the last set differ most, in words."""
    _, first, *_, last = table.columns
    gap = table[last] - table[first]
    line = table.loc[gap.abs().idxmax()]
    return said(
        "Largest difference between {first} and {last}: {letter}, {share} and {last_share}.",
        first=called(first),
        last=called(last),
        letter=line["letter"],
        share=f"{line[first]:.1%}",
        last_share=f"{line[last]:.1%}",
    )


def confusion_table(probs: pd.DataFrame, answers: pd.Series) -> pd.DataFrame:
    """Count the chosen letters by right letter: `right`, and a column for each chosen one."""
    counts = one_hot(answers).T @ one_hot(predictions(probs))  # [4 right, 4 chosen]
    table = pd.DataFrame(counts.astype(int), columns=list(LETTERS))
    table.insert(0, "right", list(LETTERS))
    return table


def describe_confusion(probs: pd.DataFrame, answers: pd.Series) -> str:
    """Give the share of right rows, and the most frequent pair of mixed-up letters, in words."""
    right = correct(probs, answers)
    low, high = accuracy_interval(right)
    share = said(
        "{right} of the rows are right (95 % interval {low} to {high}); they are on the diagonal.",
        right=f"{right.mean():.1%}",
        low=f"{low:.1%}",
        high=f"{high:.1%}",
    )
    if right.all():
        return share
    chosen = predictions(probs).to_numpy()
    pairs = pd.DataFrame({"answer": answers.to_numpy(), "chosen": chosen})
    counts = pairs[~right].value_counts()  # the most frequent pair first
    answer, letter = counts.index[0]
    frequent = said(
        "Of the {wrong} others, {letter} instead of {answer} is the most frequent kind: "
        "{rows} rows.",
        wrong=(~right).sum(),
        letter=letter,
        answer=answer,
        rows=counts.iloc[0],
    )
    return f"{share}\n{frequent}"


def worst_mistakes(
    probs: pd.DataFrame,
    train: pd.DataFrame,
    count: int,
    more: Mapping[str, np.ndarray | pd.Series] | None = None,
) -> pd.DataFrame:
    """The wrong rows with the least probable right answer, at most `count`.

    Args:
        probs: `id`, `a` to `d`, and `fold` if known.
        train: the train rows.
        count: of mistakes at most.
        more: further columns, in the order of `probs`.

    Returns:
        The row's columns, its `fold` if known, `kind` of question, `chosen` letter, `p_answer`,
        `p_chosen` (the confidence) and `more`, with the row's place in `probs` as index.
    """
    rows = rows_of(probs, train).drop(columns="paraphrases", errors="ignore")
    rows["chosen"] = predictions(probs).to_numpy()
    rows["kind"] = question_kinds(rows)
    if "fold" in probs:
        rows["fold"] = probs["fold"].to_numpy()
    rows["p_answer"] = at_letter(option_matrix(probs), rows["answer"])
    rows["p_chosen"] = at_letter(option_matrix(probs), rows["chosen"])
    for name, column in (more or {}).items():
        rows[name] = np.asarray(column)  # by position: a Series' own index does not count
    mistakes = rows[rows["chosen"] != rows["answer"]]
    return mistakes.nsmallest(count, "p_answer")


def describe_mistakes(mistakes: pd.DataFrame, right: np.ndarray) -> str:
    """Give the number of mistakes listed and of all, and the model's confidence in them."""
    wrong = int((~right).sum())
    if wrong == 0:
        return said("None of the {rows} rows is wrong.", rows=len(right))
    return said(
        "{listed} of {wrong} mistakes, the least probable right option (✓) first, {least} of the "
        "probability; {sure} of them chose another (bold) with more than {level}.",
        listed=len(mistakes),
        wrong=wrong,
        least=f"{mistakes['p_answer'].iloc[0]:.1%}",
        sure=(mistakes["p_chosen"] > SURE).sum(),
        level=f"{SURE:.0%}",
    )


def _accuracy_line(right: np.ndarray) -> dict[str, Any]:
    """The accuracy of some rows, with Wilson's 95 % interval."""
    low, high = accuracy_interval(right)
    return {"rows": len(right), "accuracy": right.mean(), "low": low, "high": high}

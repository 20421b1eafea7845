"""Analyse wrong answers: hard groups beyond chance, mixed-up letters, worst mistakes."""

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
)
from vqa_utils.prompts import LETTERS

MIN_ROWS = 20  # of a smaller group, accuracy is known to no better than 20 points
LEVEL = 0.05
SURE = 0.9  # a wrong answer with so much confidence is one that no threshold would catch


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
        line = accuracy_line(right[groups[by, group]])
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
        names.append(f"{_group_name(line)} ({line['accuracy']:.1%})")
    return said(
        "Hardest of the {groups} groups with {least} rows or more: {name}, {accuracy:.1%} right of "
        "{rows} rows (95 % interval {low:.1%} to {high:.1%}), {rest:.1%} of the others.\n"
        "Worse than the rest beyond chance: {names}.",
        groups=len(tested),
        least=MIN_ROWS,
        name=_group_name(hardest),
        names="; ".join(names) or called("none"),
        **hardest[["accuracy", "rows", "low", "high", "rest"]],
    )


def _group_name(line: Mapping[str, Any]) -> str:
    return f"{called(line['by'])}: {called(line['group'])}"


def describe_spread(table: pd.DataFrame) -> str:
    """Give the lowest and highest accuracy of the groups with enough rows, in words."""
    enough = table[table["rows"] >= MIN_ROWS]
    if enough.empty:
        return said("No group has {least} rows; the bars of so few say little.", least=MIN_ROWS)
    low, high = enough["accuracy"].min(), enough["accuracy"].max()
    if len(enough) == 1:
        return said(
            "The one group here with {least} rows or more has {low:.1%} right; lines are 95 % "
            "intervals.",
            least=MIN_ROWS,
            low=low,
        )
    return said(
        "The {groups} groups here with {least} rows or more lie between {low:.1%} and {high:.1%}; "
        "lines are 95 % intervals.",
        groups=len(enough),
        least=MIN_ROWS,
        low=low,
        high=high,
    )


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
        "Largest difference between {first} and {last}: {letter}, {share:.1%} and {last_share:.1%}.",
        first=called(first),
        last=called(last),
        letter=line["letter"],
        share=line[first],
        last_share=line[last],
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
        "{right:.1%} of the rows are right (95 % interval {low:.1%} to {high:.1%}); they are on the "
        "diagonal.",
        right=right.mean(),
        low=low,
        high=high,
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
        "{listed} of {wrong} mistakes, the least probable right option (✓) first, {least:.1%} of "
        "the probability; {sure} of them chose another (bold) with more than {level:.0%}.",
        listed=len(mistakes),
        wrong=wrong,
        least=mistakes["p_answer"].iloc[0],
        sure=(mistakes["p_chosen"] > SURE).sum(),
        level=SURE,
    )


def accuracy_line(right: np.ndarray) -> dict[str, Any]:
    """Return `rows`, `accuracy` and its 95 % interval, `low` to `high` (Wilson), of bool [N]."""
    low, high = accuracy_interval(right)
    return {"rows": len(right), "accuracy": right.mean(), "low": low, "high": high}

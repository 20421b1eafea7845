"""Folds without leaks: stratified by answer, grouped by image content."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from vqa_utils.config import Config
from vqa_utils.errors import VqaError
from vqa_utils.prompts import LETTERS

ALWAYS_TRAIN = -1  # the fold of rows that no model holds out (use_kfold=false)


class FoldError(VqaError):
    """Rows that cannot be folded as asked."""


def make_folds(train: pd.DataFrame, groups: list[str], config: Config) -> pd.DataFrame:
    """Assign each row the fold that holds it out.

    Args:
        train: the challenge's train rows, with `id` and `answer`.
        groups: one label a row; rows of one group stay together (see `groups.row_groups`).
        config: `n_folds`, `seed`; with `use_kfold` False, fold 0 holds out about `holdout_fraction` of the rows and the
            others get the fold -1.

    Returns:
        `id`, `group`, `fold`, in the order of `train`.

    Raises:
        FoldError: there are fewer groups than folds, or no letter is the answer to as many rows as there are folds.
    """
    fold = _fold_numbers(train, groups, config, by_group=True)
    sizes = {k: int((fold == k).sum()) for k in config.fold_numbers}
    if not all(sizes.values()):
        raise FoldError(f"expected rows in every fold, found {sizes}; set a smaller n_folds")
    return pd.DataFrame({"id": train["id"], "group": groups, "fold": fold})


def _fold_numbers(
    train: pd.DataFrame, groups: list[str], config: Config, *, by_group: bool
) -> np.ndarray:
    n_splits = config.n_folds if config.use_kfold else round(1 / config.holdout_fraction)
    available = min(len(set(groups)), train["answer"].value_counts().max())
    if available < n_splits:
        setting = (
            f"n_folds={available}"
            if config.use_kfold
            else f"holdout_fraction={1 / max(2, available):.2g}"
        )
        coarse = config.near_duplicates or config.group_questions
        kind = "groups" if coarse else "images"
        advice = f"{f'set {setting} or ' if available > 1 else ''}{'a smaller near_duplicates, ' if coarse else ''}"
        advice += "group_questions=false, or add rows" if config.group_questions else "add rows"
        raise FoldError(
            f"expected at least {n_splits} different {kind} and {n_splits} rows of some answer for {n_splits} folds, found "
            f"{len(set(groups))} {kind} in {len(train)} rows; {advice}"
        )
    splitter = (StratifiedGroupKFold if by_group else StratifiedKFold)(
        n_splits, shuffle=True, random_state=config.seed
    )
    fold = np.full(len(train), ALWAYS_TRAIN)
    with (
        warnings.catch_warnings()
    ):  # an answer rarer than there are folds: `describe_balance` says in which it is missing
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for k, (_, held_out) in enumerate(
            splitter.split(train, train["answer"], groups if by_group else None)
        ):
            if config.use_kfold or k == 0:
                fold[held_out] = k
    return fold


def read_folds(path: Path, train: pd.DataFrame) -> pd.DataFrame:
    """The folds of exactly the rows of `train`, checked.

    Raises:
        FoldError: the file is missing, names other rows, or spreads one group over two folds.
    """
    if not path.exists():
        raise FoldError(
            f"{path}: expected the run's folds, found no file; run notebook 02_folds first"
        )
    folds = pd.read_csv(path, dtype={"id": str, "group": str}, keep_default_na=False)
    if list(folds["id"]) != list(train["id"]):
        raise FoldError(
            f"{path}: expected the {len(train)} rows of train.csv in order, found others; run 02_folds again"
        )
    check_leaks(folds, str(path))
    return folds


def held_out_rows(path: Path, train: pd.DataFrame, config: Config, number: int) -> np.ndarray:
    """Whether an adapter holds out each row of `train`, bool [N]; a refit holds out none.

    Args:
        path: the run's folds.csv.
        number: the adapter's.

    Raises:
        FoldError: as `read_folds`; or the run has no such adapter, or the file's folds are not those of its settings.
    """
    if number not in config.adapter_numbers:
        known = ", ".join(map(str, config.adapter_numbers))
        raise FoldError(
            f"fold: expected one of {known}, found {number}; with refit=true, there is one more"
        )
    held_out = (read_folds(path, train)["fold"] == number).to_numpy()
    if held_out.any() != (number in config.fold_numbers):
        expected = f"{'rows' if number in config.fold_numbers else 'no row'} in fold {number}"
        raise FoldError(
            f"{path}: expected {expected}, found {held_out.sum()} rows; run notebook 02_folds again"
        )
    return held_out


def check_leaks(folds: pd.DataFrame, where: str) -> None:
    """Raise a FoldError with ids where a group (an image, rows joined to it) stands in more than one fold."""
    leaking = leaks(folds)
    if len(leaking):
        raise FoldError(
            f"{where}: expected each image in one fold, found ids of one image in several: {list(leaking[:6])}; "
            "put them into one fold, or run 02_folds again"
        )


def leaks(folds: pd.DataFrame) -> pd.Series:
    """The ids whose group stands in more than one fold."""
    return folds["id"][folds.groupby("group")["fold"].transform("nunique") > 1]


def plain_split(train: pd.DataFrame, groups: list[str], config: Config) -> pd.DataFrame:
    """What `make_folds` would give without regard to groups."""
    fold = _fold_numbers(train, groups, config, by_group=False)
    return pd.DataFrame({"id": train["id"], "group": groups, "fold": fold})


def copied_answers(train: pd.DataFrame, folds: pd.DataFrame, questions: pd.Series) -> pd.Series:
    """How far a leak gives answers away without any model: copy what another fold answers to the same question.

    Args:
        train: the challenge's train rows.
        folds: a split of them with leaks.
        questions: what counts as the same question, a line a row (see `groups.same_words`).

    Returns:
        By position, for each row whose group and question stand in another fold too, whether the answer of the first such row
        there, by its text, is right.
    """
    options = train[list(LETTERS)].to_numpy()
    answer = options[np.arange(len(train)), train["answer"].map(LETTERS.index)]
    rows = pd.DataFrame({
        "row": range(len(train)), "group": folds["group"], "question": questions, "fold": folds["fold"], "answer": answer,
    })  # fmt: skip
    pairs = rows.merge(rows, on=["group", "question"], suffixes=("", "_copied"))
    copied = pairs[pairs["fold"] != pairs["fold_copied"]].drop_duplicates("row").set_index("row")
    return copied["answer"] == copied["answer_copied"]


def describe_copied_answers(train: pd.DataFrame, copied: pd.Series) -> str:
    """`copied_answers` in words, beside the most frequent letter on the same rows."""
    if copied.empty:
        return "None of them asks what another fold asks about the same picture: no answer could just be copied."
    letters = train["answer"].iloc[copied.index]
    common = letters.value_counts().index[0]
    return (
        f"{len(copied)} of them ask what another fold asks about the same picture: copying its answer, without any model, is "
        f"right for {copied.mean():.1%} of these, always answering {common} for {(letters == common).mean():.1%}."
    )


def describe_balance(folds: pd.DataFrame, train: pd.DataFrame) -> str:
    """How far the folds' mixes of right letters differ, in words, and which letters a fold lacks."""
    mix = (
        folds.merge(train[["id", "answer"]])
        .groupby("fold")["answer"]
        .value_counts(normalize=True)
        .unstack(fill_value=0)
    )
    never = [letter for letter in LETTERS if letter not in mix]
    lines = [
        f"The share of a letter differs by at most {(mix.max() - mix.min()).max():.1%} between folds."
    ]
    for k, shares in mix.iterrows():
        lacks = list(mix.columns[shares == 0])
        if lacks and k != ALWAYS_TRAIN:
            lines.append(
                f"Fold {k} holds out no row whose answer is {' or '.join(lacks)}: its score says nothing about those."
            )
    if never:
        lines.append(
            f"No train row has the answer {' or '.join(never)}: no fold learns it, and no score says anything about it."
        )
    return "\n".join(lines)

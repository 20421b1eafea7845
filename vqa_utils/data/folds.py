"""Make folds without leaks: stratified by answer, grouped by image content."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from vqa_utils.artifacts.files import read_table
from vqa_utils.config import Config
from vqa_utils.errors import VqaError
from vqa_utils.metrics import at_letter
from vqa_utils.prompts import LETTERS

ALWAYS_TRAIN = -1  # the fold of rows that no model holds out (use_kfold=false)
SHOWN = 6  # ids named


class FoldError(VqaError):
    """Rows that cannot be folded as asked."""


def make_folds(train: pd.DataFrame, groups: list[str], config: Config) -> pd.DataFrame:
    """Assign each row to the fold that holds it out.

    Args:
        train: the challenge's train rows, with `id` and `answer`.
        groups: one label per row; rows of one group stay together (see `groups.row_groups`).
        config: `n_folds`, `seed`; with `use_kfold` False, fold 0 holds out about
            `holdout_fraction` of the rows and the others get the fold -1.

    Returns:
        `id`, `group`, `fold`, in the order of `train`.

    Raises:
        FoldError: there are fewer groups than folds, or no letter is the answer to as many rows as
            there are folds.
    """
    fold = _fold_numbers(train, groups, config, by_group=True)
    sizes = {k: int((fold == k).sum()) for k in config.fold_numbers}
    if not all(sizes.values()):
        raise FoldError(f"expected rows in every fold, found {sizes}; set a smaller n_folds")
    return pd.DataFrame({"id": train["id"], "group": groups, "fold": fold})


def plain_split(train: pd.DataFrame, groups: list[str], config: Config) -> pd.DataFrame:
    """Fold as `make_folds` would without regard to groups."""
    fold = _fold_numbers(train, groups, config, by_group=False)
    return pd.DataFrame({"id": train["id"], "group": groups, "fold": fold})


def _fold_numbers(
    train: pd.DataFrame, groups: list[str], config: Config, *, by_group: bool
) -> np.ndarray:
    """The fold of each row, int [N]."""
    # Half a second, and most commands make no folds
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    # Without k-fold, a held-out share of 0.2 is one part of five
    parts = config.n_folds if config.use_kfold else round(1 / config.holdout_fraction)
    # scikit-learn refuses if every answer has fewer rows than there are parts; with fewer
    # groups than parts, some part would be empty
    available = min(len(set(groups)), train["answer"].value_counts().max())
    if available < parts:
        coarse = config.near_duplicates or config.group_questions
        kind = "groups" if coarse else "images"
        raise FoldError(
            f"expected at least {parts} different {kind} and {parts} rows of some answer for "
            f"{parts} folds, found {len(set(groups))} {kind} in {len(train)} rows; "
            f"{_advice(available, config)}"
        )
    splitter_class = StratifiedGroupKFold if by_group else StratifiedKFold
    splitter = splitter_class(parts, shuffle=True, random_state=config.seed)
    fold = np.full(len(train), ALWAYS_TRAIN)
    with warnings.catch_warnings():
        # An answer rarer than there are folds: `describe_balance` names the folds without it
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        splits = list(splitter.split(train, train["answer"], groups if by_group else None))
    for k in config.fold_numbers:  # without k-fold, the first part alone
        _, held_out = splits[k]
        fold[held_out] = k
    return fold


def _advice(available: int, config: Config) -> str:
    """What to change if there are only `available` different groups or rows of an answer."""
    advice = ""
    if available > 1:
        fraction = f"holdout_fraction={1 / available:.2g}"
        advice += f"set {f'n_folds={available}' if config.use_kfold else fraction} or "
    if config.near_duplicates or config.group_questions:
        advice += "a smaller near_duplicates, "
    if config.group_questions:
        advice += "group_questions=false, or "
    return f"{advice}add rows"


def read_folds(path: Path, train: pd.DataFrame) -> pd.DataFrame:
    """Read a run's folds.csv, checked: its rows are those of `train`.

    Raises:
        FoldError: the file is missing, names other rows, or spreads one group over two folds.
        TornFile: it is no table of folds.
    """
    if not path.exists():
        raise FoldError(
            f"{path}: expected the run's folds, found no file; run notebook 02_folds first"
        )
    # Ids stay text: 01 would become 1, and None a missing value
    folds = read_table(
        path,
        ["id", "group", "fold"],
        mend="run notebook 02_folds again",
        dtype={"id": str, "group": str},
        keep_default_na=False,
    )
    if list(folds["id"]) != list(train["id"]):
        raise FoldError(
            f"{path}: expected the {len(train)} rows of train.csv in order, found others; "
            "run 02_folds again"
        )
    check_leaks(folds, str(path))
    return folds


def held_out_rows(path: Path, train: pd.DataFrame, config: Config, number: int) -> np.ndarray:
    """Tell for each row of `train` if an adapter holds it out, bool [N]; a refit holds out none.

    Args:
        path: the run's folds.csv.
        number: the adapter's.

    Raises:
        FoldError: as `read_folds`; or the run has no such adapter, or the file's folds are not
            those of its settings.
    """
    if number not in config.adapter_numbers:
        known = ", ".join(map(str, config.adapter_numbers))
        raise FoldError(
            f"fold: expected one of {known}, found {number}; with refit=true, there is one more"
        )
    held_out = (read_folds(path, train)["fold"] == number).to_numpy()
    is_fold = number in config.fold_numbers
    if held_out.any() != is_fold:
        expected = "rows" if is_fold else "no row"
        raise FoldError(
            f"{path}: expected {expected} in fold {number}, found {held_out.sum()} rows; "
            "run notebook 02_folds again"
        )
    return held_out


def leaks(folds: pd.DataFrame) -> pd.Series:
    """The ids of rows whose group is in more than one fold."""
    folds_of_group = folds.groupby("group")["fold"].transform("nunique")
    return folds["id"][folds_of_group > 1]


def check_leaks(folds: pd.DataFrame, source: str) -> None:
    """Check that no group (one image, or rows joined to it) is in more than one fold.

    Args:
        folds: `id`, `group`, `fold`.
        source: the folds' file, or how the rows were grouped; for the error.

    Raises:
        FoldError: with some of the ids.
    """
    leaking = leaks(folds)
    if len(leaking):
        raise FoldError(
            f"{source}: expected each image in one fold, found ids of one image in several: "
            f"{list(leaking[:SHOWN])}; put them into one fold, or run 02_folds again"
        )


def copied_answers(train: pd.DataFrame, folds: pd.DataFrame, questions: pd.Series) -> pd.Series:
    """Answer each leaked row without any model: copy the answer from the other fold.

    Args:
        train: the challenge's train rows.
        folds: a split of them with leaks.
        questions: equal for rows that ask the same, one per row (see `groups.same_words`).

    Returns:
        A bool for each row whose group and question are in another fold too, indexed by position:
        the first such row there has the same right answer, by its text.
    """
    options = train[list(LETTERS)].to_numpy()  # [N, 4] texts
    rows = pd.DataFrame({
        "row": range(len(train)),
        "group": folds["group"],
        "question": questions,
        "fold": folds["fold"],
        "answer": at_letter(options, train["answer"]),
    })  # fmt: skip
    # Ordered pairs, each row with itself included; they keep the order of the rows
    pairs = rows.merge(rows, on=["group", "question"], suffixes=("", "_copied"))
    leaked = pairs[pairs["fold"] != pairs["fold_copied"]]
    first = leaked.drop_duplicates("row").set_index("row")
    return first["answer"] == first["answer_copied"]


def describe_copied_answers(train: pd.DataFrame, copied: pd.Series) -> str:
    """Say how often `copied_answers` is right, beside the most frequent letter on the same rows."""
    if copied.empty:
        return (
            "None of them asks what another fold asks about the same picture: no answer could "
            "just be copied."
        )
    letters = train["answer"].iloc[copied.index]
    common = letters.value_counts().index[0]
    return (
        f"{len(copied)} of them ask what another fold asks about the same picture: copying its "
        f"answer, without any model, is right for {copied.mean():.1%} of these, always answering "
        f"{common} for {(letters == common).mean():.1%}."
    )


def describe_balance(folds: pd.DataFrame, train: pd.DataFrame) -> str:
    """Say how far the folds' shares of right letters differ, and name the letters a fold lacks."""
    answers = folds.merge(train[["id", "answer"]]).groupby("fold")["answer"]
    shares = answers.value_counts(normalize=True).unstack(fill_value=0)  # [folds, letters]
    spread = (shares.max() - shares.min()).max()
    lines = [f"The share of a letter differs by at most {spread:.1%} between folds."]
    for k, of_fold in shares.iterrows():
        lacks = list(shares.columns[of_fold == 0])
        if lacks and k != ALWAYS_TRAIN:
            lines.append(
                f"Fold {k} holds out no row whose answer is {' or '.join(lacks)}: its score says "
                "nothing about those."
            )
    never = [letter for letter in LETTERS if letter not in shares]
    if never:
        lines.append(
            f"No train row has the answer {' or '.join(never)}: no fold learns it, and no score "
            "says anything about it."
        )
    return "\n".join(lines)

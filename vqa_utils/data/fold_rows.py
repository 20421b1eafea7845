"""Select a fold's rows: held out, and to train on, extra rows included.

Extra rows (`extra_train`) are held out by no fold. They join the training of each fold, except
those that show or ask the same as a row held out there: these would leak it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vqa_utils.artifacts.files import read_table
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config
from vqa_utils.data.challenge import Challenge
from vqa_utils.data.folds import FoldError, held_out_rows
from vqa_utils.data.groups import asked, folds_near, folds_of


@dataclass(frozen=True)
class FoldRows:
    """The rows of a fold, or of the refit, which holds out none."""

    train: pd.DataFrame
    """Those of all other folds, then `extra`."""
    held_out: pd.DataFrame
    extra: pd.DataFrame
    """The last rows of `train`: the extra rows that leak nothing held out."""
    extra_left_out: int
    """Number of the other extra rows."""

    def describe(self) -> str:
        """Count the rows, in words."""
        counts = f"{len(self.train)} rows to train on, {len(self.held_out)} held out"
        if self.extra.empty and not self.extra_left_out:
            return f"{counts}; there are no extra rows."
        return (
            f"{counts}. Of the rows to train on, {len(self.extra)} are extra rows; "
            f"{self.extra_left_out} more are left out because they would leak a held-out picture "
            "or question."
        )


def rows_of_fold(paths: RunPaths, config: Config, challenge: Challenge, fold: int) -> FoldRows:
    """Part the challenge's rows as notebook 02 has written it to `folds.csv` and `folds_extra.csv`.

    Raises:
        FoldError: as `folds.held_out_rows` and `extra_rows`.
    """
    is_held_out = held_out_rows(paths.folds, challenge.train, config, fold)  # [rows of train]
    extra = extra_rows(paths.extra_folds, challenge.extra, fold)
    train = pd.concat([challenge.train[~is_held_out], extra], ignore_index=True)
    left_out = len(challenge.extra) - len(extra)
    return FoldRows(train, challenge.train[is_held_out], extra, left_out)


def extra_rows(path: Path, extra: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Select the extra rows that a fold may be trained on.

    Args:
        path: the run's folds_extra.csv, made of `extra_folds`; not read if there are no extra rows.

    Raises:
        FoldError: the file is missing, or names other rows.
    """
    if extra.empty:
        return extra
    if not path.exists():
        raise FoldError(
            f"{path}: expected the folds that leave out each extra row, found no file; "
            "run notebook 02_folds first"
        )
    left_out = read_table(
        path,
        ["id", "left_out_of"],
        mend="run notebook 02_folds again",
        dtype=str,
        keep_default_na=False,
    )
    if list(left_out["id"]) != list(extra["id"]):
        raise FoldError(
            f"{path}: expected the {len(extra)} rows of extra_train in order, found others; "
            "run 02_folds again"
        )
    is_used = [str(fold) not in numbers.split() for numbers in left_out["left_out_of"]]
    return extra[is_used]


def extra_folds(challenge: Challenge, folds: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Find the folds whose training must leave out an extra row, as it leaks a row held out there.

    Args:
        challenge: loaded with its images checked.
        folds: `fold` of the train rows.
        config: a row with the same picture leaks; with `near_duplicates` above 0 also one within so
            many bits, and with `group_questions` one that asks the same.

    Returns:
        `id` and `left_out_of`, the folds' numbers with spaces between, in the order of the extra
        rows.
    """
    train, extra = challenge.images_of(challenge.train), challenge.images_of(challenge.extra)
    folds_of_picture = folds_of(train["hash"], folds["fold"])
    leaks = [_look_up(extra["hash"], folds_of_picture)]  # by reason: the folds of each extra row
    if config.near_duplicates:
        folds_of_look = folds_of(train["perceptual_hash"], folds["fold"])
        looks = extra["perceptual_hash"]
        leaks.append(_look_up(looks, folds_near(looks, folds_of_look, config.near_duplicates)))
    if config.group_questions:
        leaks.append(_folds_that_ask(challenge, folds))
    rows = []
    for row_id, *by_reason in zip(challenge.extra["id"], *leaks, strict=True):
        leaks_from = set().union(*by_reason) & set(config.fold_numbers)  # not from ALWAYS_TRAIN
        rows.append((row_id, " ".join(map(str, sorted(leaks_from)))))
    return pd.DataFrame(rows, columns=["id", "left_out_of"])


def _look_up(keys: Iterable[str], folds: Mapping[str, set[int]]) -> list[set[int]]:
    return [folds.get(key, set()) for key in keys]


def _folds_that_ask(challenge: Challenge, folds: pd.DataFrame) -> list[set[int]]:
    """The folds with a row that asks the same as an extra row, in any of the words of both."""
    train_words = asked(challenge.train)
    folds_of_words = folds_of(train_words, folds["fold"].loc[train_words.index])
    found: list[set[int]] = [set() for _ in range(len(challenge.extra))]
    for position, words in asked(challenge.extra).items():
        found[position] |= folds_of_words.get(words, set())
    return found


def describe_extra_rows(challenge: Challenge, left_out: pd.DataFrame) -> str:
    """Say how many extra rows `extra_folds` leaves out, and how many show a test picture."""
    if left_out.empty:
        return "There are no extra rows to train on."
    test_pictures = challenge.images_of(challenge.test)["hash"]
    in_test = challenge.images_of(challenge.extra)["hash"].isin(test_pictures)
    leaking = left_out["left_out_of"] != ""
    return (
        f"{len(left_out)} extra rows join the training; {leaking.sum()} of them show or ask what "
        f"a fold holds out, and are left out there. {in_test.sum()} show a picture of a test row, "
        "which is no leak of a held-out one."
    )

"""Folds without leaks: stratified by answer, grouped by image content."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from vqa_utils.config import Config
from vqa_utils.errors import VqaError

ALWAYS_TRAIN = -1  # the fold of rows that no model holds out (use_kfold=false)


class FoldError(VqaError):
    """Rows that cannot be folded as asked."""


def make_folds(train: pd.DataFrame, groups: list[str], config: Config) -> pd.DataFrame:
    """Assign each row the fold that holds it out.

    Args:
        train: the challenge's train rows, with `id` and `answer`.
        groups: one label a row; rows of one group (here: of one image) stay together.
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


def _fold_numbers(train: pd.DataFrame, groups: list[str], config: Config, *, by_group: bool) -> np.ndarray:
    n_splits = config.n_folds if config.use_kfold else round(1 / config.holdout_fraction)
    available = min(len(set(groups)), train["answer"].value_counts().max())
    if available < n_splits:
        setting = f"n_folds={available}" if config.use_kfold else f"holdout_fraction={1 / max(2, available):.2g}"
        raise FoldError(
            f"expected at least {n_splits} different images and {n_splits} rows of some answer for {n_splits} folds, found "
            f"{len(set(groups))} images in {len(train)} rows; {f'set {setting} or ' if available > 1 else ''}add rows"
        )
    splitter = (StratifiedGroupKFold if by_group else StratifiedKFold)(n_splits, shuffle=True, random_state=config.seed)
    fold = np.full(len(train), ALWAYS_TRAIN)
    for k, (_, held_out) in enumerate(splitter.split(train, train["answer"], groups if by_group else None)):
        if config.use_kfold or k == 0:
            fold[held_out] = k
    return fold


def read_folds(path: Path, train: pd.DataFrame) -> pd.DataFrame:
    """The folds of exactly the rows of `train`, checked.

    Raises:
        FoldError: the file is missing, names other rows, or spreads one group over two folds.
    """
    if not path.exists():
        raise FoldError(f"{path}: expected the run's folds, found no file; run notebook 02_folds first")
    folds = pd.read_csv(path, dtype={"id": str, "group": str}, keep_default_na=False)
    if list(folds["id"]) != list(train["id"]):
        raise FoldError(f"{path}: expected the {len(train)} rows of train.csv in order, found others; run 02_folds again")
    leaking = leaks(folds)
    if len(leaking):
        raise FoldError(f"{path}: expected each image in one fold, found ids of one image in several: {list(leaking[:6])}")
    return folds


def leaks(folds: pd.DataFrame) -> pd.Series:
    """The ids whose group stands in more than one fold."""
    return folds["id"][folds.groupby("group")["fold"].transform("nunique") > 1]


def plain_split_leaks(train: pd.DataFrame, groups: list[str], config: Config) -> int:
    """How many rows a split that ignores images would hold out while training on the same image."""
    fold = _fold_numbers(train, groups, config, by_group=False)
    return int(pd.DataFrame({"group": groups, "fold": fold}).groupby("group")["fold"].transform("nunique").gt(1).sum())

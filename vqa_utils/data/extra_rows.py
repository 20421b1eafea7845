"""More rows to train on (`extra_train`): they join each fold's training, but for those that show what the fold holds out."""

from pathlib import Path

import pandas as pd

from vqa_utils.config import Config
from vqa_utils.data.challenge import Challenge
from vqa_utils.data.folds import FoldError
from vqa_utils.data.groups import asked, folds_near, folds_of


def extra_folds(challenge: Challenge, folds: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Which folds' training has to do without an extra row, as it would leak a row that they hold out.

    Args:
        challenge: loaded with its images checked.
        folds: `fold` of the train rows.
        config: an extra row leaks one of the same picture; also one within `near_duplicates` bits, where that is not 0, and
            one that asks the same with `group_questions`.

    Returns:
        `id` and `left_out_of`, the folds' numbers with spaces between, in the order of the extra rows.
    """
    train, extra = (
        challenge.images.loc[rows["path"]].reset_index(drop=True)
        for rows in (challenge.train, challenge.extra)
    )
    keys = [(train["hash"], extra["hash"])]
    if config.group_questions:
        keys.append((asked(challenge.train), asked(challenge.extra)))
    seen = []
    for of_train, of_extra in keys:
        known = folds_of(of_train, folds["fold"].loc[of_train.index])
        by_key = pd.Series(
            [known.get(key, set()) for key in of_extra], of_extra.index, dtype=object
        )
        seen.append([set().union(*of_row) for _, of_row in by_key.groupby(level=0)])
    if config.near_duplicates:
        known = folds_of(train["perceptual_hash"], folds["fold"])
        near = folds_near(extra["perceptual_hash"], known, config.near_duplicates)
        seen.append([near[digits] for digits in extra["perceptual_hash"]])
    left_out = [
        sorted(set().union(*row) & set(config.fold_numbers)) for row in zip(*seen, strict=True)
    ]
    return pd.DataFrame(
        {
            "id": challenge.extra["id"],
            "left_out_of": [" ".join(map(str, numbers)) for numbers in left_out],
        }
    )


def extra_rows(path: Path, extra: pd.DataFrame, fold: int) -> pd.DataFrame:
    """The extra rows that a fold may be trained on.

    Args:
        path: what notebook 02 wrote of `extra_folds`; not read where there is no extra row.

    Raises:
        FoldError: the file is missing, or names other rows.
    """
    if extra.empty:
        return extra
    if not path.exists():
        raise FoldError(
            f"{path}: expected which extra rows a fold leaves out, found no file; run notebook 02_folds first"
        )
    left_out = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(left_out["id"]) != list(extra["id"]):
        raise FoldError(
            f"{path}: expected the {len(extra)} rows of extra_train in order, found others; run 02_folds again"
        )
    return extra[[str(fold) not in folds.split() for folds in left_out["left_out_of"]]]


def describe_extra_rows(challenge: Challenge, left_out: pd.DataFrame) -> str:
    """What `extra_folds` found, in words, with how many extra rows show a test picture."""
    if left_out.empty:
        return "There are no extra rows to train on."
    hashes = challenge.images["hash"]
    in_test = challenge.extra["path"].map(hashes).isin(challenge.test["path"].map(hashes)).sum()
    return (
        f"{len(left_out)} extra rows join the training; {(left_out['left_out_of'] != '').sum()} of them show or ask what a fold "
        f"holds out, and are left out there. {in_test} show a picture of a test row, which is no leak of a held-out one."
    )

"""Check a challenge's rows; describe wrong ones by file and line."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from vqa_utils.data._csv_files import row_problems
from vqa_utils.prompts import LETTERS

EMPTY_ID = "id: expected a value, found none"
REPEATED_ID = "id {id!r}: expected once, found again"
UNKNOWN_ID = "id {id!r}: expected an id of test.csv, found none there"
UNKNOWN_ROW = "id {id!r}: expected an id of train.csv or of extra_train, found none there"
TAKEN_ID = "id {id!r}: expected one that is not in train.csv or test.csv, found it there"
WRONG_ANSWER = "answer: expected a, b, c or d, found {answer!r}"
WRONG_IMAGE = "{path!r}: expected an image, {problem}"


def question_problems(folder: Path, name: str, rows: pd.DataFrame) -> list[str]:
    """Describe empty or repeated ids, and empty paths, questions and options."""
    is_empty = rows["id"].str.strip() == ""
    is_repeated = rows["id"].duplicated() & (rows["id"] != "")
    problems = row_problems(folder, name, rows, is_empty, EMPTY_ID)
    problems += row_problems(folder, name, rows, is_repeated, REPEATED_ID)
    for column in ("path", "question", *LETTERS):
        is_empty = rows[column].str.strip() == ""
        template = f"{column}: expected a value, found none (id {{id!r}})"
        problems += row_problems(folder, name, rows, is_empty, template)
    return problems


def answer_problems(folder: Path, name: str, rows: pd.DataFrame) -> list[str]:
    """Describe answers other than a to d."""
    is_wrong = ~rows["answer"].isin(LETTERS)
    return row_problems(folder, name, rows, is_wrong, WRONG_ANSWER)


def sample_problems(folder: Path, name: str, sample: pd.DataFrame, test: pd.DataFrame) -> list[str]:
    """Describe repeated ids of the sample submission, and those that test.csv lacks."""
    is_repeated = sample["id"].duplicated()
    is_unknown = ~sample["id"].isin(test["id"])
    problems = row_problems(folder, name, sample, is_repeated, REPEATED_ID)
    return problems + row_problems(folder, name, sample, is_unknown, UNKNOWN_ID)


def taken_id_problems(
    folder: Path, name: str, extra: pd.DataFrame, own_ids: Iterable[str]
) -> list[str]:
    """Describe extra rows with the id of another row of the challenge."""
    is_taken = extra["id"].isin(list(own_ids))
    return row_problems(folder, name, extra, is_taken, TAKEN_ID)


def image_problems(
    folder: Path, name: str, located: pd.DataFrame, images: pd.DataFrame | None
) -> list[str]:
    """Describe rows whose image cannot be used.

    Args:
        folder: holds the file.
        name: the file's.
        located: of `paths.locate`, for all rows of the file. An empty path is described by
            `question_problems`.
        images: `problem`, by path (see `images.read_images`); without it, only paths that lead out
            of the folder are described.
    """
    if images is None:
        problems = located["problem"].where(located["is_refused"], "")
    else:
        of_images = located["file"].map(images["problem"])
        problems = located["problem"].where(located["problem"] != "", of_images)
    is_wrong = (problems != "") & (located["path"].str.strip() != "")
    described = located[["path"]].assign(problem=problems)
    return row_problems(folder, name, described, is_wrong, WRONG_IMAGE)


def drop_problems(
    folder: Path, name: str, dropped: pd.DataFrame, train: pd.DataFrame, extra: pd.DataFrame
) -> list[str]:
    """Describe the wrong rows of a file with ids to leave out.

    Args:
        dropped: the file's.
        train: the rows to train on.
        extra: further ones.
    """
    is_unknown = ~dropped["id"].isin([*train["id"], *extra["id"]])
    problems = row_problems(folder, name, dropped, is_unknown, UNKNOWN_ROW)
    if train["id"].isin(dropped["id"]).all():
        problems.append(f"{name}: expected to leave some rows of train.csv, found all of them")
    return problems

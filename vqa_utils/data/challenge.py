"""The challenge's files: CSVs in the encodings the field uses, images opened when needed, all problems in one error."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from vqa_utils.artifacts.paths import demo_data_dir
from vqa_utils.config import DEMO_DATA, Config
from vqa_utils.data._csv_files import listed, read_rows, row_problems
from vqa_utils.data.images import read_images
from vqa_utils.data.paraphrases import (
    PARAPHRASE_COLUMNS,
    PARAPHRASES,
    paraphrase_problems,
    with_paraphrases,
)
from vqa_utils.errors import VqaError
from vqa_utils.prompts import LETTERS

QUESTION_COLUMNS = ("id", "path", "question", *LETTERS)
TRAIN_COLUMNS = (*QUESTION_COLUMNS, "answer")
UNKNOWN_ID = "id {id!r}: expected an id of test.csv, found none there"
TAKEN_ID = "id {id!r}: expected one that is not in train.csv or test.csv, found it there"


class DataError(VqaError):
    """Everything that is wrong with an input folder."""


@dataclass(frozen=True)
class Challenge:
    """A challenge's rows, checked. All columns are text; `answer` is one of a to d."""

    folder: Path
    train: pd.DataFrame
    """id, path, question, a, b, c, d, answer; where `paraphrase` is on, paraphrases (see `paraphrases.with_paraphrases`)"""
    test: pd.DataFrame
    """id, path, question, a, b, c, d"""
    sample_submission: pd.DataFrame
    """id, answer"""
    images: pd.DataFrame | None = None
    """a line an image file, by its path (see `images.read_images`); None where they were not checked"""

    extra: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=TRAIN_COLUMNS, dtype=str)
    )
    """the rows of `extra_train`, the columns of train; their paths are absolute"""
    extra_file: Path | None = None
    paraphrase_file: Path | None = None
    """None where `paraphrase` is off too"""

    @property
    def files(self) -> list[Path]:
        own = [self.folder / name for name in ("train.csv", "test.csv", "sample_submission.csv")]
        return own + [file for file in (self.extra_file, self.paraphrase_file) if file]


def data_dir(config: Config) -> Path:
    """The folder of the run's challenge; easy-VQA is written there first where it is asked for and missing."""
    if config.data != DEMO_DATA:
        return Path(config.data)
    from vqa_utils.data.easy_vqa import write_challenge  # the demo stands beside the floors

    return write_challenge(demo_data_dir())


def load_challenge(config: Config, *, check_images: bool = False) -> Challenge:
    """Read and check a run's challenge.

    Args:
        config: `data` names the folder, `extra_train` a file of more rows, `limit` the number of rows; `paraphrase` asks for the
            rows' other wordings.
        check_images: read every image too.

    Raises:
        DataError: with every missing column, duplicate or empty id, answer outside a to d, empty question or option,
            missing or unreadable image, id of sample_submission.csv that test.csv lacks, extra id that either has, and
            paraphrase of no row or without words.
    """
    folder, extra_name = data_dir(config), config.extra_train
    problems: list[str] = []
    columns = {
        "train.csv": TRAIN_COLUMNS,
        "test.csv": QUESTION_COLUMNS,
        "sample_submission.csv": ("id", "answer"),
    }
    columns |= {extra_name: TRAIN_COLUMNS} if extra_name else {}
    columns |= (
        {PARAPHRASES: PARAPHRASE_COLUMNS}
        if config.paraphrase and (folder / PARAPHRASES).exists()
        else {}
    )
    frames = {name: read_rows(folder, name, wanted, problems) for name, wanted in columns.items()}
    if problems:
        raise DataError(listed(folder, problems))
    paraphrases = frames.pop(PARAPHRASES, None)
    train, test, sample, *extra = frames.values()
    for name, frame in frames.items():
        if columns[name] == TRAIN_COLUMNS:
            frame["answer"] = frame["answer"].str.strip().str.lower()
            wrong_answer = ~frame["answer"].isin(LETTERS)
            problems += row_problems(
                folder, name, frame, wrong_answer, "answer: expected a, b, c or d, found {answer!r}"
            )
        if name != "sample_submission.csv":
            problems += _question_problems(folder, name, frame)
    for frame in extra:
        problems += row_problems(
            folder, extra_name, frame, frame["id"].isin([*train["id"], *test["id"]]), TAKEN_ID
        )
        frame["path"] = [
            str(_place(path, Path(extra_name).parent, folder)) for path in frame["path"]
        ]
    problems += row_problems(
        folder,
        "sample_submission.csv",
        sample,
        sample["id"].duplicated(),
        "id {id!r} stands there twice",
    )
    unknown = ~sample["id"].isin(test["id"])
    problems += row_problems(folder, "sample_submission.csv", sample, unknown, UNKNOWN_ID)
    if paraphrases is not None:
        problems += paraphrase_problems(
            folder, paraphrases, [row_id for frame in (train, *extra) for row_id in frame["id"]]
        )
    if config.limit:
        train, test = train.head(config.limit), test.head(config.limit)
        sample = sample[sample["id"].isin(test["id"])].reset_index(drop=True)
        extra = [frame.head(config.limit) for frame in extra]
    shown = {"train.csv": train, "test.csv": test} | dict(
        zip([extra_name] * len(extra), extra, strict=True)
    )
    images = (
        read_images(folder, pd.concat([frame["path"] for frame in shown.values()]))
        if check_images
        else None
    )
    if check_images:
        problems += _image_problems(folder, images, shown)
    if problems:
        raise DataError(listed(folder, problems))
    if config.paraphrase:
        train, *extra = (with_paraphrases(frame, paraphrases) for frame in (train, *extra))
    more = {"extra": extra[0], "extra_file": Path(extra_name)} if extra else {}
    if paraphrases is not None:
        more["paraphrase_file"] = folder / PARAPHRASES
    return Challenge(folder, train, test, sample, images, **more)


def load_test(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a test set alone, and the rows to submit: its sample_submission.csv, or all of test.csv without one.

    Raises:
        DataError: as `load_challenge`, images included.
    """
    problems: list[str] = []
    test = read_rows(folder, "test.csv", QUESTION_COLUMNS, problems)
    name = "sample_submission.csv"
    sample = (
        read_rows(folder, name, ("id", "answer"), problems) if (folder / name).exists() else None
    )
    if not problems:
        problems += _question_problems(folder, "test.csv", test)
        problems += _image_problems(folder, read_images(folder, test["path"]), {"test.csv": test})
    if not problems and sample is not None:
        unknown = ~sample["id"].isin(test["id"])
        problems += row_problems(folder, "sample_submission.csv", sample, unknown, UNKNOWN_ID)
    if problems:
        raise DataError(listed(folder, problems))
    return test, test[["id"]] if sample is None else sample


def _place(path: str, *folders: Path) -> Path:
    """Where an image lies: in the first of the folders that has it, or as it stands where its path is absolute."""
    places = [(folder / path).absolute() for folder in folders]
    return next((place for place in places if place.is_file()), places[0])


def _question_problems(folder: Path, name: str, frame: pd.DataFrame) -> list[str]:
    problems = row_problems(
        folder, name, frame, frame["id"].str.strip() == "", "id: expected a value, found none"
    )
    again = frame["id"].duplicated() & (frame["id"] != "")
    problems += row_problems(folder, name, frame, again, "id {id!r}: expected once, found again")
    for column in ("path", "question", *LETTERS):
        empty = frame[column].str.strip() == ""
        problems += row_problems(
            folder, name, frame, empty, f"{column}: expected a value, found none (id {{id!r}})"
        )
    return problems


def _image_problems(
    folder: Path, images: pd.DataFrame, frames: dict[str, pd.DataFrame]
) -> list[str]:
    problems = []
    for name, frame in frames.items():
        rows = frame.assign(problem=frame["path"].map(images["problem"]))
        problems += row_problems(
            folder, name, rows, rows["problem"] != "", "{path}: expected an image, {problem}"
        )
    return problems

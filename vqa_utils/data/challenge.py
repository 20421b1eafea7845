"""Read and check a challenge; report all problems in one error, by file and line."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from vqa_utils.artifacts.files import from_sheet
from vqa_utils.config import Config
from vqa_utils.data._checks import (
    answer_problems,
    drop_problems,
    image_problems,
    question_problems,
    sample_problems,
    taken_id_problems,
)
from vqa_utils.data._csv_files import read_rows
from vqa_utils.data.known.challenges import KNOWN_CHALLENGES, data_dir
from vqa_utils.data.paraphrases import (
    PARAPHRASE_COLUMNS,
    PARAPHRASES,
    paraphrase_problems,
    with_paraphrases,
)
from vqa_utils.data.pictures.images import keep_images, read_images
from vqa_utils.data.pictures.paths import PictureFolder, beside_or_in, describe_alike, locate
from vqa_utils.errors import VqaError, counted
from vqa_utils.prompts import LETTERS

TRAIN, TEST, SAMPLE = "train.csv", "test.csv", "sample_submission.csv"
QUESTION_COLUMNS = ("id", "path", "question", *LETTERS)
TRAIN_COLUMNS = (*QUESTION_COLUMNS, "answer")
SAMPLE_COLUMNS = ("id", "answer")


class DataError(VqaError):
    """Everything that is wrong with an input folder."""


@dataclass(frozen=True)
class Challenge:
    """A challenge's rows, checked. All columns are text; `answer` is one of a to d."""

    folder: Path
    train: pd.DataFrame
    """id, path, question, a, b, c, d, answer; with `paraphrase` on, paraphrases (see
    `paraphrases.with_paraphrases`)."""
    test: pd.DataFrame
    """id, path, question, a, b, c, d."""
    sample_submission: pd.DataFrame
    """id, answer."""
    images: pd.DataFrame | None = None
    """One line per image file, by path (see `images.read_images`); None if they were not checked."""
    extra: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=list(TRAIN_COLUMNS), dtype=str)
    )
    """The rows of `extra_train`, the columns of train; their paths are absolute."""
    extra_file: Path | None = None
    paraphrase_file: Path | None = None
    """None with `paraphrase` off, too."""
    drop_file: Path | None = None
    """Names the rows that were left out."""

    @property
    def files(self) -> list[Path]:
        """Return every CSV that was read."""
        files = [self.folder / TRAIN, self.folder / TEST, self.folder / SAMPLE]
        more = (self.extra_file, self.paraphrase_file, self.drop_file)
        return files + [file for file in more if file is not None]

    @property
    def question_rows(self) -> dict[str, pd.DataFrame]:
        """Return the rows with questions, by the name of their file."""
        rows = {TRAIN: self.train, TEST: self.test}
        if self.extra_file is not None:
            rows[str(self.extra_file)] = self.extra
        return rows

    def images_of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the lines of `images` for these rows, in their order, indexed by position.

        Raises:
            ValueError: the challenge was loaded without its images.
        """
        if self.images is None:
            raise ValueError("expected a challenge loaded with `images`, found one without")
        return self.images.loc[rows["path"]].reset_index(drop=True)


def load_challenge(config: Config, *, images: Path | None = None) -> Challenge:
    """Read and check a run's challenge.

    Args:
        config: `data` names the folder or a known challenge, which is written first. `extra_train`
            names a file with more rows, `drop` one with rows to leave out, `limit` the number of
            rows to keep, and `paraphrase` asks for the rows' other wordings.
        images: the run's images.csv. If given, every picture is checked too; one whose size and
            mtime match its line there is not opened again, all others are read and added.

    Raises:
        DataError: with every missing column, duplicate or empty id, answer outside a to d, empty
            question or option, missing or unreadable image, id of sample_submission.csv that
            test.csv lacks, extra id that either has, paraphrase without a row or without words, and
            row to leave out that is not there.
    """
    if config.data in KNOWN_CHALLENGES:
        KNOWN_CHALLENGES[config.data].write(data_dir(config.data))
    challenge, paraphrases = _read_files(data_dir(config.data), config)
    challenge = _with_plain_answers(challenge)
    problems = _row_problems(challenge)
    if paraphrases is not None:
        ids = [*challenge.train["id"], *challenge.extra["id"]]
        problems += paraphrase_problems(challenge.folder, paraphrases, ids)
    # The checks above cover whole files; images are read of the kept rows alone
    challenge = _without_dropped(challenge, config, problems)
    if config.limit:
        challenge = _first_rows(challenge, config.limit)
    found = _find_images(challenge.folder, challenge.question_rows)
    pictures = _read_images(challenge.folder, found, images, problems)
    _refuse(challenge.folder, problems)
    challenge = replace(_with_found_paths(challenge, found), images=pictures)
    return _with_paraphrases(challenge, config, paraphrases)


def load_test(folder: Path, images: Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read and check a test set alone.

    Args:
        images: as for `load_challenge`.

    Returns:
        The rows of test.csv, and the rows to submit: those of sample_submission.csv, or without
        such a file the ids of test.csv.

    Raises:
        DataError: as `load_challenge`.
    """
    problems: list[str] = []
    test = read_rows(folder, TEST, QUESTION_COLUMNS, problems)
    sample = test[["id"]]
    if (folder / SAMPLE).exists():
        sample = read_rows(folder, SAMPLE, SAMPLE_COLUMNS, problems)
    _refuse(folder, problems)
    problems += question_problems(folder, TEST, test)
    problems += sample_problems(folder, SAMPLE, sample, test)
    found = _find_images(folder, {TEST: test})
    _read_images(folder, found, images, problems)
    _refuse(folder, problems)
    return test.assign(path=found[TEST]["file"]), sample


def read_questions(config: Config) -> dict[str, pd.DataFrame]:
    """Read the rows of a run's files, unchecked, with their paraphrases, by the name of the file.

    Raises:
        DataError: a file is missing, or no table with the columns that it needs.
    """
    challenge, paraphrases = _read_files(data_dir(config.data), config)
    problems: list[str] = []
    challenge = _without_dropped(challenge, config, problems)
    _refuse(challenge.folder, problems)
    if config.limit:
        challenge = _first_rows(challenge, config.limit)
    return _with_paraphrases(challenge, config, paraphrases).question_rows


def _read_files(folder: Path, config: Config) -> tuple[Challenge, pd.DataFrame | None]:
    """Read the tables, unchecked, and the paraphrases, if `paraphrase` is on and they are there.

    Raises:
        DataError: a file cannot be read as a table with the columns that it needs.
    """
    problems: list[str] = []
    challenge = Challenge(
        folder,
        train=read_rows(folder, TRAIN, TRAIN_COLUMNS, problems),
        test=read_rows(folder, TEST, QUESTION_COLUMNS, problems),
        sample_submission=read_rows(folder, SAMPLE, SAMPLE_COLUMNS, problems),
    )
    if config.extra_train:
        extra = read_rows(folder, config.extra_train, TRAIN_COLUMNS, problems)
        challenge = replace(challenge, extra=extra, extra_file=Path(config.extra_train))
    paraphrases = None
    if config.paraphrase and (folder / PARAPHRASES).exists():
        paraphrases = read_rows(folder, PARAPHRASES, PARAPHRASE_COLUMNS, problems)
        challenge = replace(challenge, paraphrase_file=folder / PARAPHRASES)
    _refuse(folder, problems)
    return challenge, paraphrases


def _with_plain_answers(challenge: Challenge) -> Challenge:
    """Normalise answers: "B " becomes "b"."""
    tables = (challenge.train, challenge.extra)
    plain = [rows.assign(answer=rows["answer"].str.strip().str.lower()) for rows in tables]
    return replace(challenge, train=plain[0], extra=plain[1])


def _row_problems(challenge: Challenge) -> list[str]:
    """Describe everything that is wrong with the rows of the CSVs."""
    folder, train, test = challenge.folder, challenge.train, challenge.test
    problems = []
    for name, rows in challenge.question_rows.items():
        if "answer" in rows:
            problems += answer_problems(folder, name, rows)
        problems += question_problems(folder, name, rows)
    if challenge.extra_file is not None:
        own_ids = [*train["id"], *test["id"]]
        problems += taken_id_problems(folder, str(challenge.extra_file), challenge.extra, own_ids)
    problems += sample_problems(folder, SAMPLE, challenge.sample_submission, test)
    return problems


def _without_dropped(challenge: Challenge, config: Config, problems: list[str]) -> Challenge:
    """Leave out the rows that `drop` names; `problems` gets a line for each that is not there."""
    if not config.drop:
        return challenge
    tables = (challenge.train, challenge.extra)
    dropped = read_rows(challenge.folder, config.drop, ("id",), problems)
    known = {*challenge.train["id"], *challenge.extra["id"]}
    dropped["id"] = [row if row in known else from_sheet(row) for row in dropped["id"]]
    problems += drop_problems(challenge.folder, config.drop, dropped, *tables)
    kept = [rows[~rows["id"].isin(dropped["id"])].reset_index(drop=True) for rows in tables]
    return replace(challenge, train=kept[0], extra=kept[1], drop_file=Path(config.drop))


def _first_rows(challenge: Challenge, limit: int) -> Challenge:
    """Keep the first rows of each file, and the rows to submit that are still in the test set."""
    test = challenge.test.head(limit)
    sample = challenge.sample_submission
    return replace(
        challenge,
        train=challenge.train.head(limit),
        test=test,
        sample_submission=sample[sample["id"].isin(test["id"])].reset_index(drop=True),
        extra=challenge.extra.head(limit),
    )


def _find_images(folder: Path, rows_by_file: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Find the image files of all rows: lines of `paths.locate`, by the rows' file."""
    in_folder = PictureFolder(folder)
    found = {}
    for name, rows in rows_by_file.items():
        is_own = name in (TRAIN, TEST)
        find = in_folder.find if is_own else beside_or_in(folder / name, in_folder)
        found[name] = locate(rows["path"], find)
    return found


def _read_images(
    folder: Path, found: dict[str, pd.DataFrame], table: Path | None, problems: list[str]
) -> pd.DataFrame | None:
    """Read all images that were found, or their lines in the run's images.csv, and keep them there.

    Args:
        found: of `_find_images`.
        table: images.csv; without it nothing is read.
        problems: those found before; gets a line per row without a usable image, or without `table`
            per row whose path leads out of the folder.
    """
    images = None
    if table is not None:
        everywhere = pd.concat(found.values(), ignore_index=True)
        images = read_images(folder, everywhere["file"][everywhere["problem"] == ""], table)
        if everywhere["is_alike"].any():
            print(describe_alike(everywhere))
    for name, located in found.items():
        problems += image_problems(folder, name, located, images)
    if table is not None and images is not None:
        is_run = table.parent.exists()
        if is_run or not problems:  # a run that is refused at its start leaves no folder
            keep_images(images, table)
    return images


def _with_paraphrases(
    challenge: Challenge, config: Config, paraphrases: pd.DataFrame | None
) -> Challenge:
    if not config.paraphrase:
        return challenge
    train = with_paraphrases(challenge.train, paraphrases)
    extra = with_paraphrases(challenge.extra, paraphrases)
    return replace(challenge, train=train, extra=extra)


def _with_found_paths(challenge: Challenge, found: dict[str, pd.DataFrame]) -> Challenge:
    """Put the files that were found in place of the rows' paths; those of extra rows are absolute."""
    rows = challenge.question_rows
    files = {name: rows[name].assign(path=located["file"]) for name, located in found.items()}
    challenge = replace(challenge, train=files[TRAIN], test=files[TEST])
    if challenge.extra_file is None:
        return challenge
    return replace(challenge, extra=files[str(challenge.extra_file)])


def _refuse(folder: Path, problems: list[str]) -> None:
    """Raise a DataError with all problems of a folder's files, if there are any."""
    if problems:
        raise DataError(counted(str(folder), problems))

"""Whatever a file or a command says: rows, settings or files below the folder, or one error; the same examples each time."""

import csv
import os

import pandas as pd
import pytest
from bad_inputs import HEAD, ROW, SAMPLE, TEST, TRAIN, write_small_challenge
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vqa_utils.artifacts.files import read_table, write_csv
from vqa_utils.artifacts.probabilities import read_probabilities, write_probabilities
from vqa_utils.config import Config, field_types, parse_settings
from vqa_utils.data.challenge import DataError, load_challenge, load_test
from vqa_utils.data.pictures.paths import PictureFolder
from vqa_utils.errors import VqaError
from vqa_utils.presets import preset


def examples(count):
    return settings(max_examples=count, derandomize=True, database=None, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_small_challenge(tmp_path_factory.mktemp("any") / "data")
    (folder / "images" / "link.png").symlink_to("/etc/passwd")
    (folder / "out").symlink_to("/etc")
    return folder


def load(folder):
    return load_challenge(preset("demo", data=str(folder)), images=folder.parent / "images.csv")


PIECES = [",", '"', '""', "\n", "\r", "\r\n", ";", "\t", "\\", "\0", " ", "\ufeff", HEAD, ROW, "a", "정답",
          "id", "images/i1.png", "é", "=", "{0}", "%s", "\u2028", "\u200b"]  # fmt: skip
CODE_PAGES = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp949", "cp932", "latin-1"])
TEXTS = st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.text(max_size=40)
TABLES = st.tuples(st.sampled_from(["", HEAD + "\n", f"{HEAD}\n{ROW}\n"]), TEXTS).map("".join)
BYTES = st.binary(max_size=200) | st.builds(lambda t, c: t.encode(c, "replace"), TABLES, CODE_PAGES)


NAMES = st.sampled_from([TRAIN, TEST, SAMPLE])


@examples(80)
@given(contents=BYTES, name=NAMES)
def test_any_bytes_are_rows_or_one_error(folder, contents, name):
    before = (folder / name).read_bytes()
    assert gives_rows_or_one_error(folder, name, before, contents)


@examples(80)
@given(name=NAMES, at=st.integers(0, 300), end=st.integers(0, 10), piece=TEXTS)
def test_a_file_with_anything_put_in_is_rows_or_one_error(folder, name, at, end, piece):
    before = (folder / name).read_bytes()
    at %= len(before)
    assert gives_rows_or_one_error(
        folder, name, before, before[:at] + piece.encode() + before[at + end :]
    )


def gives_rows_or_one_error(folder, name, before, contents):
    (folder / name).write_bytes(contents)
    try:
        challenge = load(folder)
    except DataError as error:
        return name in str(error) or (name == TEST and SAMPLE in str(error))
    else:
        train, test = challenge.train, challenge.test
        return all(len(rows) and rows.map(type).eq(str).all(axis=None) for rows in (train, test))
    finally:
        (folder / name).write_bytes(before)


SIGNS = [",", '"', "\n", "\r", " ", "\t", "=", "'", "0", "\x85", "가"]
CELL = st.text(max_size=9) | st.lists(st.sampled_from(SIGNS), max_size=3).map("".join)
INNER = CELL.map(lambda text: f"x{text}x")


@examples(100)
@given(
    ids=st.lists(CELL | INNER, min_size=1, max_size=2, unique=True),
    words=st.lists(INNER, min_size=5),
)
@example(ids=["a\rb"], words=["x"] * 5)
def test_any_ids_questions_and_options_come_back_or_are_told(folder, ids, words):
    other = folder / "images"  # without a sample submission
    rows = [[row_id, "i5.png", *words[:5]] for row_id in ids]
    with (other / TEST).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([HEAD.split(",")[:-1], *rows])
    try:
        test, _ = load_test(other)
    except DataError as error:
        blank = any(not text.strip() for text in [*ids, *words[:5]])
        spoilt = any(not text.isprintable() or text != text.strip() for text in ids)
        assert blank or spoilt or any("\0" in text for text in words)
        assert f"{TEST} line " in str(error)
        return
    assert test.to_numpy().tolist() == rows
    between_stages(folder.parent, test["id"])


def between_stages(folder, ids):
    """Ids come back from the files that stages read."""
    probs = pd.DataFrame([[0.25] * 4] * len(ids), columns=list("abcd")).assign(id=list(ids))
    write_probabilities(folder / "probs.csv", probs)
    assert read_probabilities(folder / "probs.csv", ids)["id"].tolist() == list(ids)
    write_csv(folder / "folds.csv", pd.DataFrame({"id": ids, "fold": 0}))
    folds = read_table(folder / "folds.csv", ["id"], dtype={"id": str}, keep_default_na=False)
    assert folds["id"].tolist() == list(ids)


STEPS = ["..", ".", "", "images", "IMAGES", "i1.png", "I1.JPG", "link.png", "out", "passwd", "\0", "~",
         "i1.png ", "x" * 300, "C:", "https:", "é", "{0}", "*"]  # fmt: skip
PATHS = st.text(max_size=30) | st.builds(
    lambda join, steps, start: start + join.join(steps),
    st.sampled_from(["/", "\\", "//"]),
    st.lists(st.sampled_from(STEPS), max_size=6),
    st.sampled_from(["", "/", "{folder}/"]),
)


@examples(300)
@given(path=PATHS)
def test_any_path_is_a_file_below_the_folder_or_has_a_problem(folder, path):
    found = PictureFolder(folder).find(path.replace("{folder}", str(folder)))
    if not found.problem:
        real = os.path.realpath(folder / found.file)
        assert real.startswith(f"{folder}/") and os.path.exists(real)  # noqa: PTH110


VALUES = st.text(max_size=20) | st.sampled_from(
    [
        "nan",
        "inf",
        "-1",
        "0",
        "1e999",
        "9" * 5_000,
        "1e-9",
        "true",
        "auto",
        "12GB",
        "null",
        "[1]",
        "{0}",
    ]
)


@examples(300)
@given(name=st.sampled_from([*field_types(), "x", ""]), value=VALUES)
def test_any_setting_is_one_or_an_error(name, value):
    try:
        config = Config(**parse_settings([f"{name}={value}"]))
    except VqaError as error:
        assert name in str(error)
    else:
        assert name in field_types() and hasattr(config, name)

import io
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import write_korean_challenge
from PIL import Image

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.data import images
from vqa_utils.data._csv_files import read_rows
from vqa_utils.data.challenge import DataError, load_challenge, load_test
from vqa_utils.data.duplicates import duplicate_table, image_sizes
from vqa_utils.data.images import image_hashes, open_image
from vqa_utils.data.question_kinds import question_kinds
from vqa_utils.presets import preset
from vqa_utils.running.execution import execute


@pytest.fixture
def folder(tmp_path):
    return write_korean_challenge(tmp_path / "data", train=6, test=3)


def edit(folder, name, change, encoding="utf-8"):
    frame = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
    change(frame).to_csv(folder / name, index=False, encoding=encoding)


def load(folder, **changes):
    config = preset("demo", data=str(folder), **changes)
    return load_challenge(config, images=folder.parent / "images.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_korean_text_is_read_in_the_fields_encodings(folder, encoding):
    edit(folder, "train.csv", lambda frame: frame, encoding)
    challenge = load(folder)
    assert challenge.train["question"][0] == "이 그림에 있는 도형은 무슨 색인가요?"
    assert challenge.train.columns[0] == "id"


def test_an_image_column_stands_for_path_and_capitals_for_letters(folder):
    before = load(folder).train
    edit(
        folder,
        "train.csv",
        lambda f: f.rename(columns={"path": "image"}).assign(answer=f["answer"].str.upper() + " "),
    )
    pd.testing.assert_frame_equal(load(folder).train, before)


def test_options_stay_text(folder):
    edit(folder, "train.csv", lambda frame: frame.assign(a="01", b="None", c="NA", d="3.50"))
    assert load(folder).train.loc[0, list("abcd")].tolist() == ["01", "None", "NA", "3.50"]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (20, 30)


def test_sixteen_bits_of_grey_do_not_turn_white(tmp_path):
    Image.fromarray(np.full((4, 4), 30000, np.uint16)).save(tmp_path / "grey.png")
    assert open_image(tmp_path / "grey.png").getpixel((0, 0)) == (117, 117, 117)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_put_on_white(tmp_path, mode):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).convert(mode).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_strip_of_an_image_is_refused_before_a_model_is(folder):
    Image.new("RGB", (3000, 8)).save(folder / "images" / "train_0000.png")
    with pytest.raises(DataError, match=r"train\.csv line 2: .*found one of 3000 x 8 px"):
        load(folder)


@pytest.mark.parametrize("text", ["", "id,path\n1,2\n3,4,5,6\n"])
def test_a_file_that_is_no_table_is_an_error_with_its_name(folder, text):
    (folder / "test.csv").write_text(text)
    with pytest.raises(DataError, match=r"test\.csv: expected comma-separated rows"):
        load(folder)


def test_a_text_that_its_commas_cut_off_is_an_error(folder):
    lines = (folder / "test.csv").read_text().splitlines()
    ends = [line + "," for line in lines[1:]]
    (folder / "test.csv").write_text("\n".join([lines[0], *ends]))
    assert len(load(folder).test) == 3  # commas at the ends of lines say nothing
    (folder / "test.csv").write_text("\n".join([lines[0], ends[0] + "라", *ends[1:]]))
    with pytest.raises(
        DataError,
        match=r"1 problems\n.*test\.csv line 2: expected 7 cells, found more; put texts with commas",
    ):
        load(folder)


def test_columns_that_nobody_asked_for_are_not_read(folder):
    before = load(folder).train
    edit(folder, "train.csv", lambda frame: frame.assign(length="7")[["length", *frame]])
    pd.testing.assert_frame_equal(load(folder).train, before)


def test_limit_takes_the_first_rows_of_both_files(folder):
    challenge = load(folder, limit=2)
    assert (len(challenge.train), len(challenge.test), len(challenge.sample_submission)) == (
        2,
        2,
        2,
    )
    assert set(challenge.sample_submission["id"]) == set(challenge.test["id"])


def test_every_problem_is_listed_with_file_and_line(folder):
    def spoil(frame):
        frame.loc[1, "answer"] = "e"
        frame.loc[2, "id"] = frame.loc[0, "id"]
        frame.loc[3, "b"] = " "
        frame.loc[4, "path"] = "images/none.png"
        return frame

    edit(folder, "train.csv", spoil)
    (folder / load_test(folder)[0]["path"][0]).write_bytes(b"not an image")
    edit(
        folder,
        "sample_submission.csv",
        lambda frame: frame.assign(id=[*frame["id"][:2], "test_9999"]),
    )
    with pytest.raises(DataError) as error:
        load(folder)
    message = str(error.value)
    for line in (
        "train.csv line 3: answer: expected a, b, c or d, found 'e'",
        "train.csv line 4: id 'train_0000': expected once, found again",
        "train.csv line 5: b: expected a value, found none (id 'train_0003')",
        "train.csv line 6: images/none.png: expected an image, found no file",
        "test.csv line 2: images/test_0006.png: expected an image, found",
        "sample_submission.csv line 4: id 'test_9999': expected an id of test.csv",
    ):
        assert line in message
    assert "6 problems" in message


@pytest.mark.parametrize("encoding", ["utf-8", "cp949"])
def test_lines_are_those_of_the_file_whatever_stands_before(folder, encoding):
    file = folder / "train.csv"
    head, first, second, third, *_ = file.read_text(encoding="utf-8").splitlines()
    first = first.replace("이 그림에", '"이 그림에\n\n', 1).replace("인가요?", '인가요?"', 1)
    third = third.rsplit(",", 1)[0] + ",e"
    file.write_bytes("\n".join([head, "", first, "  ", second, third, ""]).encode(encoding))
    with pytest.raises(DataError) as error:
        load(folder)
    assert "train.csv line 8: answer: expected a, b, c or d, found 'e'" in str(error.value)


def test_a_torn_image_is_found(folder):
    path = folder / "images" / "train_0000.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(
        DataError, match=r"train\.csv line 2: images/train_0000\.png: expected an image"
    ):
        load(folder)


def test_missing_files_and_columns_come_together(folder):
    (folder / "sample_submission.csv").unlink()
    edit(folder, "test.csv", lambda frame: frame.drop(columns=["c", "question"]))
    with pytest.raises(
        DataError, match=r"(?s)lacks question, c.*sample_submission.csv: expected a file"
    ):
        load(folder)


def test_many_problems_of_a_kind_are_counted(tmp_path):
    folder = write_korean_challenge(tmp_path / "many", train=40, test=1)
    edit(folder, "train.csv", lambda frame: frame.assign(answer="x"))
    with pytest.raises(DataError, match="28 more rows like the last"):
        load(folder)


def test_a_test_set_alone_needs_no_sample_submission(folder):
    (folder / "train.csv").unlink()
    (folder / "sample_submission.csv").unlink()
    test, sample = load_test(folder)
    assert list(sample["id"]) == list(test["id"]) and len(test) == 3


def test_equal_pictures_under_other_names_are_found(folder):
    shutil.copy(folder / "images/train_0000.png", folder / "images/train_0001.png")
    shutil.copy(folder / "images/train_0000.png", folder / "images/test_0006.png")
    challenge = load(folder)
    hashes = image_hashes(folder, challenge.train["path"])
    assert hashes[0] == hashes[1] and len(set(hashes)) == 5
    table = duplicate_table(challenge)
    assert table.loc["pictures"].to_dict() == {
        "different": 7,
        "train rows": 2,
        "test rows": 0,
        "test rows in train": 1,
    }
    assert table.loc["questions", "train rows"] == 6
    assert image_sizes(challenge)["width"].unique().tolist() == [64]


def test_an_image_file_is_read_once_for_all_its_rows_and_tables(folder, monkeypatch):
    edit(folder, "train.csv", lambda frame: frame.assign(path=frame["path"][0]))
    read, really = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or really(path))
    challenge = load(folder)
    assert sorted(read) == ["test_0006.png", "test_0007.png", "test_0008.png", "train_0000.png"]
    hashes = image_hashes(folder, challenge.train["path"])
    columns = ["hash", "width", "height", "problem"]
    assert (
        challenge.images.loc["images/train_0000.png", columns].tolist() == [hashes[0], 64, 64, ""]
        and len(hashes) == 6
    )
    shutil.rmtree(folder / "images")
    assert duplicate_table(challenge).loc["pictures", "train rows"] == 6
    assert image_sizes(challenge)["split"].value_counts().to_dict() == {"train": 6, "test": 3}


def test_kinds_of_question():
    expected = [
        ("is there a cat?", ["yes", "No ", "maybe", "unknown"], "yes/no"),
        ("고양이가 있나요?", ["예", "아니요", "둘 다", "모름"], "yes/no"),
        ("How many cats are there?", list("1234"), "counting"),
        ("이 도형은 무슨 색인가요?", ["빨간색", "파란색", "흰색", "회색"], "colour"),
        ("what color is the shape?", ["red", "blue", "gray", "teal"], "colour"),
        ("what shape is present?", ["circle", "star", "line", "triangle"], "shape"),
        ("간판에 적힌 글자는?", ["가", "나", "다", "라"], "text"),
        ("where is this?", ["yes", "there", "home", "away"], "other"),
    ]
    rows = pd.DataFrame(
        [(question, *options) for question, options, _ in expected],
        columns=["question", *"abcd"],
        index=range(8, 0, -1),
    )
    assert question_kinds(rows).to_dict() == dict(
        zip(rows.index, [kind for *_, kind in expected], strict=True)
    )


def test_a_row_that_is_too_wide_below_a_head_of_two_lines_is_a_problem_of_the_file(tmp_path):
    (tmp_path / "train.csv").write_text("\nid,question\n1,a,x\n2,b\n")
    problems = []
    read_rows(tmp_path, "train.csv", ("id", "question"), problems)
    assert len(problems) == 1 and problems[0].startswith("train.csv: expected 2 cells")


@pytest.mark.parametrize(
    ("delay", "is_terminal", "shown"), [(0, True, True), (60, True, False), (0, False, False)]
)
def test_reading_images_shows_a_bar_in_a_terminal_when_it_takes_long(
    folder, monkeypatch, delay, is_terminal, shown
):
    terminal = io.StringIO()
    terminal.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(images, "BAR_AFTER_SECONDS", delay)
    image_hashes(folder, ["images/train_0000.png"])
    assert ("hashing images" in terminal.getvalue()) == shown


def test_a_notebook_has_the_same_outputs_on_a_slow_machine(notebooks, folder, tmp_path):
    slow = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom vqa_utils.data import images; images.BAR_AFTER_SECONDS = 0"
    notebooks(
        "reads",
        slow,
        f"images.image_hashes(__import__('pathlib').Path({str(folder)!r}), ['images/train_0000.png'])",
    )
    execute("reads", tmp_path / "out.ipynb", {})
    *_, cell = nbformat.read(tmp_path / "out.ipynb", 4).cells
    assert [output.output_type for output in cell.outputs] == ["execute_result"]

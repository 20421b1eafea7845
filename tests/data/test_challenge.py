"""A challenge's files: read in the field's encodings, and refused with all their problems at once."""

import shutil

import pandas as pd
import pytest
from korean_challenge import write_korean_challenge
from PIL import Image

from vqa_utils.artifacts.files import write_sheet
from vqa_utils.config import DEMO_DATA, HARD_DATA
from vqa_utils.data._csv_files import SHOWN
from vqa_utils.data.challenge import (
    DataError,
    load_challenge,
    load_test,
)
from vqa_utils.data.duplicates import duplicate_table, image_sizes
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.data.known import challenges
from vqa_utils.data.known.challenges import KnownChallenge, data_dir
from vqa_utils.data.question_kinds import question_kinds
from vqa_utils.presets import preset


@pytest.fixture
def folder(tmp_path):
    return write_korean_challenge(tmp_path / "data", train=6, test=3)


def edit(folder, name, change, encoding="utf-8"):
    frame = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
    change(frame).to_csv(folder / name, index=False, encoding=encoding)


def load(folder, **changes):
    config = preset("demo", data=str(folder), **changes)
    return load_challenge(config, images=folder.parent / "images.csv")


def problems_of(folder, **changes):
    """The lines of the error, one per problem, without the first, which counts them."""
    with pytest.raises(DataError) as error:
        load(folder, **changes)
    first, *lines = str(error.value).splitlines()
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    assert first == f"{folder}: {count}"
    return lines


def has_line(lines, *parts):
    """Tell whether one of the lines has all of the parts."""
    return any(all(part in line for part in parts) for line in lines)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_korean_text_is_read_in_the_fields_encodings(folder, encoding):
    edit(folder, "train.csv", lambda frame: frame, encoding)
    challenge = load(folder)
    assert challenge.train["question"][0] == "이 그림에 있는 도형은 무슨 색인가요?"
    assert challenge.train.columns[0] == "id"


def test_an_image_column_stands_for_path_and_capitals_for_letters(folder):
    def respell(frame):
        answers = frame["answer"].str.upper() + " "
        return frame.rename(columns={"path": "image"}).assign(answer=answers)

    before = load(folder).train
    edit(folder, "train.csv", respell)
    pd.testing.assert_frame_equal(load(folder).train, before)


def test_options_stay_text(folder):
    edit(folder, "train.csv", lambda frame: frame.assign(a="01", b="None", c="NA", d="3.50"))
    assert load(folder).train.loc[0, list("abcd")].tolist() == ["01", "None", "NA", "3.50"]


def test_a_strip_of_an_image_is_refused_before_a_model_is(folder):
    Image.new("RGB", (3000, 8)).save(folder / "images" / "train_0000.png")
    assert has_line(problems_of(folder), "train.csv line 2", "3000 x 8 px")


@pytest.mark.parametrize("text", ["", "id,path\n1,2\n3,4,5,6\n"])
def test_a_file_that_is_no_table_is_an_error_with_its_name(folder, text):
    (folder / "test.csv").write_text(text)
    assert has_line(problems_of(folder), "test.csv")


def test_a_text_that_its_commas_cut_off_is_an_error(folder):
    lines = (folder / "test.csv").read_text().splitlines()
    ends = [line + "," for line in lines[1:]]
    (folder / "test.csv").write_text("\n".join([lines[0], *ends]))
    assert len(load(folder).test) == 3  # commas at the ends of lines say nothing
    (folder / "test.csv").write_text("\n".join([lines[0], ends[0] + "라", *ends[1:]]))
    (problem,) = problems_of(folder)
    assert "test.csv line 2" in problem and "7 cells" in problem


def test_columns_that_nobody_asked_for_are_not_read(folder):
    before = load(folder).train
    edit(folder, "train.csv", lambda frame: frame.assign(length="7")[["length", *frame]])
    pd.testing.assert_frame_equal(load(folder).train, before)


def test_limit_takes_the_first_rows_of_both_files(folder):
    challenge = load(folder, limit=2)
    sizes = len(challenge.train), len(challenge.test), len(challenge.sample_submission)
    assert sizes == (2, 2, 2)
    assert set(challenge.sample_submission["id"]) == set(challenge.test["id"])


def test_every_problem_is_listed_with_file_and_line(folder):
    def spoil(frame):
        frame.loc[1, "answer"] = "e"
        frame.loc[2, "id"] = frame.loc[0, "id"]
        frame.loc[3, "b"] = " "
        frame.loc[4, "path"] = "images/none.png"
        return frame

    edit(folder, "train.csv", spoil)
    (folder / "images/test_0006.png").write_bytes(b"not an image")
    ids = ["test_0006", "test_0007", "test_9999"]
    edit(folder, "sample_submission.csv", lambda frame: frame.assign(id=ids))
    lines = problems_of(folder)
    assert len(lines) == 6
    assert has_line(lines, "train.csv line 3", "answer", "'e'")
    assert has_line(lines, "train.csv line 4", "'train_0000'")
    assert has_line(lines, "train.csv line 5", "b: ", "'train_0003'")
    assert has_line(lines, "train.csv line 6", "images/none.png")
    assert has_line(lines, "test.csv line 2", "images/test_0006.png")
    assert has_line(lines, "sample_submission.csv line 4", "'test_9999'")


def test_an_id_to_submit_twice_is_a_problem(folder):
    edit(folder, "sample_submission.csv", lambda frame: frame.assign(id="test_0006"))
    lines = problems_of(folder)
    assert has_line(lines, "sample_submission.csv line 3", "'test_0006'") and len(lines) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "cp949"])
def test_lines_are_those_of_the_file_whatever_stands_before(folder, encoding):
    file = folder / "train.csv"
    head, first, second, third, *_ = file.read_text(encoding="utf-8").splitlines()
    first = first.replace("이 그림에", '"이 그림에\n\n', 1).replace("인가요?", '인가요?"', 1)
    third = third.rsplit(",", 1)[0] + ",e"
    file.write_bytes("\n".join([head, "", first, "  ", second, third, ""]).encode(encoding))
    assert has_line(problems_of(folder), "train.csv line 8", "'e'")


def test_a_torn_image_is_found(folder):
    path = folder / "images" / "train_0000.png"
    path.write_bytes(path.read_bytes()[:60])
    assert has_line(problems_of(folder), "train.csv line 2", "images/train_0000.png")


def test_missing_files_and_columns_come_together(folder):
    (folder / "sample_submission.csv").unlink()
    edit(folder, "test.csv", lambda frame: frame.drop(columns=["c", "question"]))
    lines = problems_of(folder)
    assert has_line(lines, "test.csv", "lacks question, c")
    assert has_line(lines, "sample_submission.csv")


def test_many_problems_of_a_kind_are_counted(tmp_path):
    folder = write_korean_challenge(tmp_path / "many", train=40, test=1)
    edit(folder, "train.csv", lambda frame: frame.assign(answer="x"))
    lines = problems_of(folder)
    assert len(lines) == SHOWN + 1 and f" {40 - SHOWN} " in lines[-1]


def test_a_test_set_alone_needs_no_sample_submission(folder):
    (folder / "train.csv").unlink()
    (folder / "sample_submission.csv").unlink()
    test, sample = load_test(folder)
    assert list(sample["id"]) == list(test["id"]) and len(test) == 3


def test_all_problems_of_a_test_set_come_at_once(folder, tmp_path):
    edit(folder, "test.csv", lambda frame: frame.assign(a=["", "x", "y"]))
    edit(folder, "sample_submission.csv", lambda frame: frame.assign(id="test_9999"))
    (folder / "images/test_0008.png").unlink()
    with pytest.raises(DataError) as error:
        load_test(folder, tmp_path / "images.csv")
    lines = str(error.value).splitlines()
    assert has_line(lines, "test.csv line 2", "a: ") and has_line(lines, "test.csv line 4")
    assert has_line(lines, "sample_submission.csv line 2", "'test_9999'")


def test_equal_pictures_under_other_names_are_found(folder):
    shutil.copy(folder / "images/train_0000.png", folder / "images/train_0001.png")
    shutil.copy(folder / "images/train_0000.png", folder / "images/test_0006.png")
    challenge = load(folder)
    hashes = challenge.images_of(challenge.train)["hash"]
    assert hashes[0] == hashes[1] and hashes.nunique() == 5
    table = duplicate_table(challenge)
    assert table.loc["pictures"].to_dict() == {
        "different": 7,
        "train rows": 2,
        "test rows": 0,
        "test rows in train": 1,
    }
    assert table.loc["questions", "train rows"] == 6
    assert image_sizes(challenge)["width"].unique().tolist() == [64]


def test_tables_need_no_image_once_they_are_read(folder):
    edit(folder, "train.csv", lambda frame: frame.assign(path=frame["path"][0]))
    challenge = load(folder)
    assert len(challenge.images) == 4
    shutil.rmtree(folder / "images")
    assert duplicate_table(challenge).loc["pictures", "train rows"] == 6
    assert image_sizes(challenge)["split"].value_counts().to_dict() == {"train": 6, "test": 3}


def test_a_challenge_without_its_images_has_none_to_give(folder):
    challenge = load_challenge(preset("demo", data=str(folder)))
    with pytest.raises(ValueError, match="images"):
        challenge.images_of(challenge.train)


def test_a_known_challenge_is_written_when_it_is_first_loaded(tmp_path, monkeypatch):
    def write(folder):
        return folder if folder.exists() else write_korean_challenge(folder, train=4, test=2)

    known = KnownChallenge(lambda: tmp_path / "place", write)
    monkeypatch.setitem(challenges.KNOWN_CHALLENGES, "shapes", known)
    assert data_dir("shapes") == tmp_path / "place" and not data_dir("shapes").exists()
    for _ in range(2):
        assert len(load_challenge(preset("demo", data="shapes")).train) == 4
    assert data_dir(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(("data", "folder"), [(DEMO_DATA, "demo-data"), (HARD_DATA, "hard-data")])
def test_known_challenges_lie_beside_the_runs(tmp_path, monkeypatch, data, folder):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    assert data_dir(data) == tmp_path / folder


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
    kinds = [kind for *_, kind in expected]
    assert question_kinds(rows).to_dict() == dict(zip(rows.index, kinds, strict=True))


def test_rows_to_leave_out_are_in_no_table_and_their_pictures_are_not_read(folder):
    whole = load(folder)
    file = folder.parent / "drop.csv"
    file.write_text("reason,id\nrejected,r1\nrejected,r4\n".replace("r1", whole.train["id"][1]).replace(
        "r4", whole.train["id"][4]))  # fmt: skip
    (folder.parent / "images.csv").unlink()
    (folder / whole.train["path"][4]).write_bytes(b"no picture")
    challenge = load(folder, drop=str(file))
    kept = whole.train.drop(index=[1, 4]).reset_index(drop=True)
    pd.testing.assert_frame_equal(challenge.train, kept)
    assert len(challenge.test) == len(whole.test) and file in challenge.files
    first = load(folder, drop=str(file), limit=2).train["id"]
    assert list(first) == list(kept["id"][:2]), "the limit counts what is left"


@pytest.mark.parametrize("row_id", ["=1+1", "-q1", "'=q1", "@q", "plain"])
def test_rows_to_leave_out_may_come_from_a_reports_table(folder, row_id):
    """There an apostrophe keeps a spreadsheet from running an id."""
    edit(folder, "train.csv", lambda rows: rows.assign(id=[row_id, *rows["id"][1:]]))
    for write in (write_sheet, lambda path, rows: rows.to_csv(path, index=False)):
        file = folder.parent / "drop.csv"
        write(file, pd.DataFrame({"id": [row_id]}))
        assert len(load(folder, drop=str(file)).train) == 5


def test_data_are_others_without_some_rows_and_with_other_ones(folder):
    hashes = set()
    for ids in ("", "t0", "t1"):
        settings = preset("demo", data=str(folder))
        if ids:
            file = folder.parent / f"{ids}.csv"
            file.write_text(f"id\n{load(folder).train['id'][int(ids[1])]}\n")
            settings = preset("demo", data=str(folder), drop=str(file))
        hashes.add(data_hash(settings))
    assert len(hashes) == 3

"""A bad input is one error that names the place and the value, for a run as for --predict."""

import pytest
from bad_inputs import (
    HEAD,
    ROW,
    SAMPLE,
    TABLE,
    TEST,
    TRAIN,
    cell,
    contents,
    line,
    with_files,
    write,
    write_small_challenge,
)

from vqa_utils.data.challenge import DataError, load_challenge, load_test
from vqa_utils.presets import preset


@pytest.fixture
def folder(tmp_path):
    return write_small_challenge(tmp_path / "data")


CASES = [pytest.param(change, data, id=name) for name, change, data in TABLE]
OF_TEST = [case for case in CASES if case.values[1][0].startswith((TEST, SAMPLE))]


def lines_of(load, *args, **settings):
    """The problems of the error, a line each."""
    with pytest.raises(DataError) as error:
        load(*args, **settings)
    first, *lines = str(error.value).splitlines()
    assert first.endswith(": 1 problem" if len(lines) == 1 else f": {len(lines)} problems")
    return lines


def load(folder, **changes):
    config = preset("demo", data=str(folder), **changes)
    return load_challenge(config, images=folder.parent / "images.csv")


def test_the_folder_is_whole_before_it_is_spoilt(folder):
    assert len(load(folder).train) == 4 and len(load_test(folder)[0]) == 2
    assert len(TABLE) >= 120 and len({name for name, *_ in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("change", "data"), CASES)
def test_a_bad_input_is_one_error_with_its_place(folder, change, data):
    change(folder)
    lines = lines_of(load, folder)
    assert any(all(datum in line for datum in data) for line in lines), "\n".join(lines)
    assert len(lines) <= 2 and max(map(len, lines)) < 1_000
    assert " at 0x" not in "".join(lines)


@pytest.mark.parametrize(("change", "data"), OF_TEST)
def test_a_prediction_is_refused_for_the_same_as_a_run(folder, change, data):
    change(folder)
    if not (folder / SAMPLE).exists():
        assert len(load_test(folder)[1]) == 2, "it may be left out"
        return
    lines = lines_of(load, folder)
    (folder / TRAIN).unlink()
    assert lines_of(load_test, folder, folder.parent / "predicted.csv") == lines


@pytest.mark.parametrize("name", ["images/i5.png", "images/i6.png"])
def test_a_prediction_needs_its_pictures(folder, name):
    (folder / name).write_bytes(b"no picture")
    lines = lines_of(load, folder)
    assert name in lines[0] and lines == lines_of(load_test, folder, folder.parent / "images.csv")


@pytest.mark.parametrize(
    ("change", "data"),
    [
        (contents("more.csv", b""), ["more.csv", "columns"]),
        (line(2, "i9,x", "more.csv"), ["more.csv line 2", "8 cells"]),
        (cell("id", "i1", "more.csv", 2), ["more.csv line 2", "'i1'", "train.csv"]),
        (cell("id", "i5", "more.csv", 2), ["more.csv line 2", "'i5'", "test.csv"]),
        (cell("answer", "x", "more.csv", 2), ["more.csv line 2", "'x'"]),
        (cell("path", "../../secret.png", "more.csv", 2), ["more.csv line 2", "leads out"]),
        (cell("path", "/etc/passwd", "more.csv", 2), ["more.csv line 2", "leads out"]),
        (cell("path", "images/i9.png", "more.csv", 2), ["more.csv line 2", "images/i9.png"]),
    ],
)
def test_bad_extra_rows_are_told_with_their_file(folder, change, data):
    other = folder.parent / "other"
    other.mkdir()
    write(other / "more.csv", [HEAD, ROW.replace("i2,", "e1,")])
    change(other)
    (problem,) = lines_of(load, folder, extra_train=str(other / "more.csv"))
    assert str(other) in problem and all(datum in problem for datum in data)


@pytest.mark.parametrize(
    ("rows", "data"),
    [
        (["i9"], ["drop.csv line 2", "'i9'"]),
        (["i5"], ["drop.csv line 2", "'i5'"]),  # of test.csv
        (["i1", "i2", "i3", "i4"], ["drop.csv", "all"]),
        ([], ["drop.csv", "rows"]),
        (None, ["drop.csv", "file"]),
    ],
)
def test_bad_rows_to_leave_out_are_told(folder, rows, data):
    file = folder.parent / "drop.csv"
    if rows is not None:
        write(file, ["id", *rows])
    problem = "\n".join(lines_of(load, folder, drop=str(file)))
    assert str(file) in problem and all(datum in problem for datum in data)


@pytest.mark.parametrize(
    ("rows", "data"),
    [
        (["i9,so?"], ["line 2", "'i9'"]),
        (["i1,so?", "i2, "], ["line 3", "'i2'"]),
        (["i1,so?,x"], ["line 2", "2 cells"]),
        ([], ["rows"]),
    ],
)
def test_bad_paraphrases_are_told(folder, rows, data):
    write(folder / "paraphrases.csv", ["id,question", *rows])
    (problem,) = lines_of(load, folder, paraphrase=True)
    assert "paraphrases.csv" in problem and all(datum in problem for datum in data)


def test_pictures_of_another_name_are_read_and_said_in_one_line(folder, capsys):
    with_files("images/x.jpeg", "images/x.JPG")(folder)
    cell("path", "IMAGES/I6.png", TEST)(folder)
    challenge = load(folder)
    assert challenge.train["path"][1] == "images/x.JPG"
    assert challenge.test["path"][1] == "images/i6.png"
    assert challenge.images_of(challenge.test)["width"].tolist() == [24, 25]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("2 ") and "'images/x.JPG'" in said
    assert load_challenge(preset("demo", data=str(folder))).train.equals(challenge.train)
    assert load_test(folder)[0].equals(challenge.test)
    assert capsys.readouterr().out == "", "once, where the pictures are checked"


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "x" * 300])
def test_a_path_that_leads_out_is_refused_where_no_picture_is_read(folder, path):
    cell("path", path)(folder)
    (problem,) = lines_of(load_challenge, preset("demo", data=str(folder)))
    assert "train.csv line 3" in problem
    cell("path", path, TEST)(folder)
    (problem,) = lines_of(load_test, folder)
    assert "test.csv line 3" in problem


def test_only_the_pictures_of_kept_rows_are_looked_for(folder):
    cell("path", "../secret.png", number=5)(folder)
    assert len(load(folder, limit=3).train) == 3

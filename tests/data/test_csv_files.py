"""CSV files as people and programs write them."""

import os
import re

import pytest

from vqa_utils.data._csv_files import SHOWN, read_rows


def read(tmp_path, contents, columns=("id", "question")):
    (tmp_path / "train.csv").write_bytes(contents)
    problems = []
    frame = read_rows(tmp_path, "train.csv", columns, problems)
    return frame, problems


@pytest.mark.parametrize(
    ("words", "encoding"),
    [
        ("いくつの赤い箱がありますか。", "cp932"),
        ("これは何色ですか", "shift_jis"),
        ("Äpfel für die Ärztin, Übung", "cp1252"),
        ("garçon à côté de l'été", "cp1252"),
        ("ÀÁÂÃ ÄÅÆ", "cp1252"),
        ("图片中有多少只猫", "gb18030"),
        ("сколько красных", "cp1251"),
    ],
)
def test_text_of_another_code_page_never_becomes_hangul(tmp_path, words, encoding):
    line = f"r1,{words.replace(',', '')}\n"
    frame, problems = read(tmp_path, ("id,question\n" + line * 3).encode(encoding))
    assert frame.empty
    assert problems == [
        "train.csv: expected UTF-8 or Korean CP949, found neither; save it as UTF-8"
    ]


def test_rare_syllables_and_signs_among_common_ones_are_korean(tmp_path):
    words = "펲시와 똠얌꿍 중에서 사진 속 음식은 무엇입니까? ㎏ ① 漢"
    frame, problems = read(tmp_path, f"id,question\nr1,{words}\n".encode("cp949"))
    assert problems == [] and frame["question"].tolist() == [words]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_another_delimiter_is_read_where_the_head_has_no_comma(tmp_path, delimiter):
    lines = [f"id{delimiter}question", f'r1{delimiter}"one, two', 'three"', f"r2{delimiter}four"]
    frame, problems = read(tmp_path, "\n".join(lines).encode())
    assert problems == [] and frame["question"].tolist() == ["one, two\nthree", "four"]


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"id,question,question\nr1,x,y\n", "expected each column once, found question again"),
        (b"id, question,question \nr1,x,y\n", "expected each column once, found question again"),
        (b"id,question\nr1,x\nr2,a\0b\n", "train.csv line 3: expected text, found a NUL byte"),
        (b"id,question\n2.02511E+14,x\n", r"line 2: id 2.02511E\+14: .*rounded by a spreadsheet"),
        ("id,question\nr\u200b1,x\n".encode(), r"line 2: id 'r\\u200b1': .*invisible spaces"),
        ("id,question\nr1\u00a0,x\n".encode(), "line 2: id .*invisible spaces"),
        (b"id,question\nr1 ,x\n", "line 2: id 'r1 ': .*invisible spaces"),
    ],
)
def test_what_a_spreadsheet_or_a_copy_has_spoilt_is_told(tmp_path, contents, said):
    _, problems = read(tmp_path, contents)
    assert len(problems) == 1 and re.search(said, problems[0]), problems


def test_a_cell_of_any_length_is_read_and_its_line_counted(tmp_path):
    long = "x" * 200_000
    contents = f"id,question\nr1,{long}\nr2 ,y\n".encode()
    frame, problems = read(tmp_path, contents)
    assert frame["question"].tolist() == [long, "y"] and "line 3" in problems[0]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["id,question", "r1,x", "r2"], "line 3: expected 2 cells, found 1"),
        (["id,question", 'r1,"x', '', 'y"', "", "r2,x,z"], "line 6: .*2 cells .*, found 3"),
        (["", "id,question", "1,a,x", "2,b"], "line 3: .*2 cells .*, found 3"),
        (["id;question", "r1;x;", "r2;x;y"], "line 3: .*2 cells .*, found 3"),
        (["id,question", 'r1,"say \\"hi\\", ok"'], "line 2: .*written twice"),
        (["id,question", 'r1,"x"', 'r2,"x" y'], "line 3: .*written twice"),
        (["id,question", 'r1,"x', "r2,y", 'r3,"z"'], "lines 2 to 4: .*written twice"),
        (["id,question", "r1,x", 'r2,"y', "r3,z"], "lines 3 to 4: .*no closing quote"),
        (["id,question", 'r1,"a\0b"'], "line 2: .*NUL"),
    ],
)  # fmt: skip
def test_cells_that_no_column_has_are_told_with_the_line_of_an_editor(tmp_path, lines, said, end):
    _, problems = read(tmp_path, end.join(lines).encode())
    assert len(problems) == 1 and re.search(f"^train.csv {said}", problems[0]), problems


@pytest.mark.parametrize("contents", [b"", b"\n\n", b" ", b'""\n', b'""', b"\xef\xbb\xbf"])
def test_a_file_without_text_lacks_its_columns(tmp_path, contents):
    frame, problems = read(tmp_path, contents)
    assert frame.empty and len(problems) == 1 and "id, question" in problems[0]


def test_a_head_alone_has_no_rows(tmp_path):
    frame, problems = read(tmp_path, b"id,question\n")
    assert list(frame) == ["id", "question"] and problems == [
        "train.csv: expected rows, found none"
    ]


@pytest.mark.parametrize(
    "contents",
    [
        b"id,question,,\nr1,x\nr2,y,,\n",
        b",id,question\n0,r1,x\n1,r2,y,\n",
        "\u200bid\ufeff, question\nr1,x\nr2,y".encode(),
        b"\xef\xbb\xbf\r\nid,question\rr1,x\r\nr2,y\n\n",
    ],
)
def test_cells_and_columns_without_text_are_none(tmp_path, contents):
    frame, problems = read(tmp_path, contents)
    assert problems == [] and frame.to_numpy().tolist() == [["r1", "x"], ["r2", "y"]]


def test_quotes_commas_and_line_ends_within_quotes_are_text(tmp_path):
    contents = b'id,question\nr1,"say ""hi"", ok"\nr2,a 12" screen\nr3,"two\r\nlines"\nr4,""""\n'
    frame, problems = read(tmp_path, contents)
    assert problems == []
    assert frame["question"].tolist() == ['say "hi", ok', 'a 12" screen', "two\r\nlines", '"']


def test_rows_of_other_widths_are_counted_past_the_first(tmp_path):
    _, problems = read(tmp_path, b"id,question\n" + b"r\n" * 40)
    assert len(problems) == SHOWN + 1 and f" {40 - SHOWN} more rows" in problems[-1]


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.csv")
    problems = []
    read_rows(tmp_path, "train.csv", ("id",), problems)
    read_rows(tmp_path, "x" * 300, ("id",), problems)
    assert "expected a file, found none" in problems[0] and len(problems) == 2


def test_a_long_cell_is_cut_in_a_message(tmp_path):
    _, problems = read(tmp_path, f"id,question\nr {'x' * 9_000} ,y\n".encode())
    assert len(problems) == 1 and "line 2: id 'r xxx" in problems[0] and len(problems[0]) < 500

"""CSV files as people and programs write them."""

import re

import pytest

from vqa_utils.data._csv_files import read_rows


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

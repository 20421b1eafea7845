"""Inputs as people, spreadsheets and copies spoil them, with the data that an error has to name."""

import csv
import io
import os
import unicodedata
import zlib

from PIL import Image

TRAIN, TEST, SAMPLE = "train.csv", "test.csv", "sample_submission.csv"
HEAD = "id,path,question,a,b,c,d,answer"
ROW = "i2,images/i2.png,what is it?,red,blue,green,grey,b"
LONG = "x" * 140_000


def write_small_challenge(folder):
    """Write rows i1 to i4 to train on, i5 and i6 to answer."""
    (folder / "images").mkdir(parents=True)
    ids = [f"i{number}" for number in range(1, 7)]
    for number, row_id in enumerate(ids):
        Image.linear_gradient("L").resize((20 + number, 20)).save(folder / f"images/{row_id}.png")
    rows = [ROW.replace("i2", row_id) for row_id in ids]
    write(folder / TRAIN, [HEAD, *rows[:4]])
    write(folder / TEST, [HEAD.removesuffix(",answer"), *(row[:-2] for row in rows[4:])])
    write(folder / SAMPLE, ["id,answer", "i5,a", "i6,a"])
    return folder


def write(file, lines):
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


# How a folder is changed ---------------------------------------------------------------------------


def contents(file, value):
    """A file has these bytes."""
    return lambda folder: (folder / file).write_bytes(value)


def line(number, text, file=TRAIN):
    """A line of a file is another one."""

    def change(folder):
        lines = (folder / file).read_text(encoding="utf-8").splitlines()
        lines[number - 1] = text
        write(folder / file, lines)

    return change


def cell(column, value, file=TRAIN, number=3):
    """A cell, by default of i2 in line 3, has another value."""

    def change(folder):
        rows = list(csv.reader((folder / file).read_text(encoding="utf-8").splitlines()))
        rows[number - 1][rows[0].index(column)] = value
        text = io.StringIO()
        csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
        (folder / file).write_text(text.getvalue(), encoding="utf-8", newline="")

    return change


def head(old, new, file=TRAIN):
    """A column has another name."""

    def change(folder):
        text = (folder / file).read_text(encoding="utf-8")
        (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def picture(value, name="images/i2.png"):
    """A picture has these bytes."""
    return contents(name, value)


def with_link(path, target):
    """A row's path goes through a link."""

    def change(folder):
        (folder / path.split("/")[0]).symlink_to(target)
        cell("path", path)(folder)

    return change


def with_files(path, *files):
    """A row's path may mean several files."""

    def change(folder):
        for file in files:
            (folder / file).write_bytes((folder / "images/i1.png").read_bytes())
        cell("path", path)(folder)

    return change


def strip(folder):
    Image.new("L", (4000, 8)).save(folder / "images/i2.png")


def torn(folder):
    file = folder / "images/i2.png"
    file.write_bytes(file.read_bytes()[:-40])


def broken_pixels(folder):
    """A PNG whose checksums are right, and whose pixels are no zlib stream."""
    start = b"\x89PNG\r\n\x1a\n"
    size = (20).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    chunks = b""
    for kind, data in ((b"IHDR", size), (b"IDAT", b"no stream"), (b"IEND", b"")):
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        chunks += len(data).to_bytes(4, "big") + kind + data + checksum
    (folder / "images/i2.png").write_bytes(start + chunks)


def in_place_of(file, make):
    """Something else stands where the file was."""

    def change(folder):
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return change


def nothing(file):
    return None


# The table: a name, the change, and the data that one line of the error has ------------------------

NO_TABLES = {  # bytes of a whole file, and what else its line has
    "nothing": (b"", "columns"),
    "a line's end": (b"\r\n", "columns"),
    "two quotes": (b'""\n', "columns"),
    "a BOM": (b"\xef\xbb\xbf", "columns"),
    "spaces": (b"  \n\t\n", "columns"),
    "commas": (b",,,\n", "columns"),
    "an open quote": (b'"id', "line 1: "),
    "a NUL": (b"id,\0", "line 1: "),
    "many NULs": (bytes(4096), "line 1: "),
    "UTF-16": (f"{HEAD}\n{ROW}\n".encode("utf-16"), "UTF-8"),
    "UTF-16 without a BOM": (f"{HEAD}\n{ROW}\n".encode("utf-16-le"), "NUL"),
    "UTF-32": (f"{HEAD}\n{ROW}\n".encode("utf-32-be"), "NUL"),
    "a Japanese code page": (f"{HEAD}\n{ROW}これは何色".encode("cp932"), "UTF-8"),
    "a Western code page": (f"{HEAD}\n{ROW}été, Äpfel".encode("cp1252"), "UTF-8"),
    "a Chinese code page": (f"{HEAD}\n{ROW}图片中有多少只猫".encode("gb18030"), "UTF-8"),
    "an Excel file": (b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0\xb5\x55", "expected"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "UTF-8"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\xff\xcb\x4c\xd1", "expected"),
    "a web page": (b"<!doctype html>\n<title>Sign in</title>\n", "lacks id"),
    "JSON": (b'[{"id": "i1", "path": "x.png"}]\n', "expected"),
    "a path of a link": (b"../../data/train.csv\n", "lacks id"),
    "other delimiters": (b"id|path|question|a|b|c|d|answer\n1|2|3|4|5|6|7|a\n", "lacks id"),
    "a head alone": (f"{HEAD}\n".encode(), "rows"),
}

HEADS = [
    *[(f"no column {name}", head(name, "other"), [TRAIN, f"lacks {name}"])
      for name in ("question", "answer", "path")],
    ("no option", head(",c,", ",e,"), [TRAIN, "lacks c", "found id"]),
    ("no option in test", head(",c,", ",e,", TEST), [TEST, "lacks c"]),
    ("no ids to submit", head("id", "ID", SAMPLE), [SAMPLE, "lacks id", "found ID"]),
    ("no answers to submit", head("answer", "label", SAMPLE), [SAMPLE, "lacks answer", "label"]),
    ("a column twice", head("d,answer", "a,answer"), [TRAIN, "found a again"]),
    ("a column twice, but for spaces", head("d,answer", " a ,answer"), [TRAIN, "found a again"]),
    ("path and image twice", head("path,question", "image,image"), [TRAIN, "found path again"]),
    ("capitals", head("id,path", "Id,Path"), [TRAIN, "lacks id, path"]),
    ("a word for the head", line(1, "rows"), [TRAIN, "lacks id"]),
    ("a row in place of the head", line(1, ROW), [TRAIN, "lacks id", "images/i2.png"]),
]  # fmt: skip

WIDTHS = [
    ("a cell less", line(3, ROW.replace("red,", "")), ["train.csv line 3", "8 cells", "found 7"]),
    ("half a line", line(5, "i4,images"), ["train.csv line 5", "8 cells", "found 2"]),
    ("a comma in a text", line(3, ROW.replace("what", "what, say,")), ["line 3", "found 10"]),
    ("a cell more in the last line", line(5, ROW + ",x"), ["train.csv line 5", "found 9"]),
    ("a cell more in the first line", line(2, ROW + ",x"), ["train.csv line 2", "found 9"]),
    ("a cell less in test", line(2, "i5,images/i5.png,x,a,b,c", TEST), ["test.csv line 2", "6"]),
    ("a cell less to submit", line(3, "i6", SAMPLE), [f"{SAMPLE} line 3", "2 cells", "found 1"]),
    ("a cell more below a text of three lines",
     line(2, f'i1,images/i1.png,"what\n\nis it",r,b,g,g,b\n{ROW},x'), ["train.csv line 5"]),
    ("another delimiter in one line", line(3, ROW.replace(",", ";")), ["line 3", "found 1"]),
    ("words after the last row", line(5, "4 rows in all"), ["train.csv line 5", "found 1"]),
]  # fmt: skip

QUOTES = [
    ("quotes escaped by a backslash",
     line(3, ROW.replace("what is it?", r'"say \"hi\", ok"')), ["train.csv line 3", '""']),
    ("a quote within quotes", line(3, ROW.replace("red", '"5" tall"')), ["train.csv line 3"]),
    ("a space after a quote", line(3, ROW.replace("red", '"red" ')), ["train.csv line 3"]),
    ("an open quote in the last line", line(5, ROW.replace("red", '"red')), ["train.csv line 5"]),
    ("an open quote, closed by the next", line(3, 'i2,"images/i2.png,x\ni3,"x"'), ["lines 3 to 4"]),
    ("a quote in the head", line(1, f'"{HEAD}'), [TRAIN, "lines 1 to 5"]),
]  # fmt: skip

IDS = [
    ("no id", cell("id", ""), ["train.csv line 3", "id", "none"]),
    ("spaces for an id", cell("id", "  "), ["train.csv line 3", "id"]),
    ("an id twice", cell("id", "i1"), ["train.csv line 3", "'i1'", "again"]),
    ("an id twice in test", cell("id", "i5", TEST), ["test.csv line 3", "'i5'", "again"]),
    ("an id twice to submit", cell("id", "i5", SAMPLE), [f"{SAMPLE} line 3", "'i5'"]),
    ("an unknown id to submit", cell("id", "i7", SAMPLE), [f"{SAMPLE} line 3", "'i7'"]),
    ("an id to submit without zeros", cell("id", "5", SAMPLE), [f"{SAMPLE} line 3", "'5'"]),
    ("capitals in an id to submit", cell("id", "I6", SAMPLE), [f"{SAMPLE} line 3", "'I6'"]),
    ("no id to submit", cell("id", "", SAMPLE), [f"{SAMPLE} line 3", "''"]),
    ("a rounded id", cell("id", "2.02511E+14"), ["train.csv line 3", "2.02511E+14"]),
    ("a rounded id of Germany", cell("id", "2,02511E+14"), ["train.csv line 3", "2,02511E+14"]),
    ("a rounded id to submit", cell("id", "2E+14", SAMPLE), [f"{SAMPLE} line 3", "2E+14"]),
    *[(f"an id with {name}", cell("id", f"i{mark}2"), ["train.csv line 3", repr(f"i{mark}2")])
      for name, mark in {"a zero-width space": "\u200b", "a hard space": "\u00a0", "a BOM": "\ufeff",
                         "a soft hyphen": "\u00ad", "a line's end": "\n", "a carriage return": "\r",
                         "a tab": "\t", "an escape": "\x1b", "right-to-left": "\u202e"}.items()],
    ("a space after an id", cell("id", "i2 "), ["train.csv line 3", "'i2 '"]),
    ("a long id twice", lambda folder: (cell("id", LONG)(folder), cell("id", LONG, number=4)(folder)),
     ["train.csv line 4", "'xxx", "..."]),
]  # fmt: skip

CELLS = [
    *[(f"no {column}", cell(column, value), ["train.csv line 3", f"{column}: ", "'i2'"])
      for column, value in {"path": "", "question": " ", "a": "", "d": "\u00a0"}.items()],
    *[(f"no {column} in test", cell(column, "", TEST), ["test.csv line 3", f"{column}: ", "'i6'"])
      for column in ("path", "question", "b")],
    *[(f"the answer {value!r}", cell("answer", value), ["train.csv line 3", repr(value)])
      for value in ("e", "", "1", "ab", "a,b", "nan", "정답", "(a)", "ａ", "[red]")],
    ("a long answer", cell("answer", LONG), ["train.csv line 3", "'xxx", "..."]),
]  # fmt: skip

PATHS = [
    *[(f"the path {value[:30]}", cell("path", value), ["train.csv line 3", "leads out", repr(value)])
      for value in ("../secret.png", "images/../../secret.png", "/etc/passwd", "/dev/zero",
                    "/proc/self/environ", r"..\..\secret.png")],
    ("a path that leads out in test", cell("path", "../x", TEST), ["test.csv line 3", "'../x'"]),
    ("a link to a file outside", with_link("link.png", "/etc/passwd"), ["line 3", "/etc/passwd"]),
    ("a link to a directory outside", with_link("link/passwd", "/etc"), ["line 3", "leads out"]),
    ("a link to itself", with_link("link.png", "link.png"), ["line 3", "'link.png'"]),
    ("a link to nothing", with_link("link.png", "images/i9.png"), ["line 3", "'link.png'"]),
    ("several files", with_files("images/x.jpeg", "images/x.JPG", "images/x.PNG"),
     ["line 3", "images/x.JPG", "images/x.PNG"]),
    ("two Unicode forms", with_files("images/É.png", *(f"images/{unicodedata.normalize(form, 'é')}.png"
                                                       for form in ("NFC", "NFD"))), ["line 3", "2 files"]),
    *[(f"a path of {name}", cell("path", value), ["train.csv line 3", said])
      for name, value, said in [
          ("nothing", "images/none.png", "'images/none.png'"),
          ("a directory", "images", "'images'"),
          ("the folder", ".", "'.'"),
          ("the web", "https://example.org/x.png", "a URL"),
          ("Windows", r"C:\data\x.png", "Windows"),
          ("300 letters", "x" * 300, "300 bytes"),
          ("100 syllables", "가" * 100, "300 bytes"),
          ("140,000 letters", LONG, "140,000 bytes"),
          ("2,000 names", "x/" * 2_000, "4,000 bytes"),
          ("a picture's bytes", "data:image/png;base64,iVBORw0KGgo=", "base64"),
          ("a photograph's bytes", "/9j/4AAQSkZJRg" * 9_000, "126,000 characters of base64"),
          ("an escape", "\x1b[31m", r"'\x1b[31m'"),
          ("braces", "{path}{0}", "'{path}{0}'"),
          ("markup", "[/red]", "'[/red]'"),
      ]],
]  # fmt: skip

PICTURES = [
    ("an empty picture", picture(b""), []),
    ("a text", picture(b"404: not found"), []),
    ("a web page", picture(b"<html><body>Sign in</body></html>"), []),
    ("a pointer of git LFS", picture(b"version https://git-lfs.github.com/spec/v1\n"), []),
    ("a vector picture", picture(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), []),
    ("a page of print", picture(b"%PDF-1.4\n%\xe2\xe3\n1 0 obj\n"), []),
    ("a picture's first bytes", picture(b"\x89PNG\r\n\x1a\n"), []),
    ("a photograph's first bytes", picture(b"\xff\xd8\xff\xe0\0\x10JFIF\0"), []),
    ("a torn picture", torn, []),
    ("broken pixels", broken_pixels, []),
    ("a strip", strip, ["4000 x 8"]),
    ("no picture", in_place_of("images/i2.png", nothing), []),
    ("a directory for a picture", in_place_of("images/i2.png", os.mkdir), []),
    ("a pipe for a picture", in_place_of("images/i2.png", os.mkfifo), []),
]  # fmt: skip
PICTURES = [
    (name, change, ["train.csv line 3", "images/i2.png", *data]) for name, change, data in PICTURES
]

FILES = [
    *[(f"{name} in place of {file}", contents(file, value), [file, said])
      for file in (TRAIN, TEST, SAMPLE) for name, (value, said) in NO_TABLES.items()
      if (file, name) != (SAMPLE, "a head alone")],
    *[(f"{name} in place of {file}", in_place_of(file, make), [file, "expected a file, found none"])
      for file in (TRAIN, TEST, SAMPLE)
      for name, make in (("no file", nothing), ("a directory", os.mkdir), ("a pipe", os.mkfifo))],
]  # fmt: skip

TABLE = [*FILES, *HEADS, *WIDTHS, *QUOTES, *IDS, *CELLS, *PATHS, *PICTURES]

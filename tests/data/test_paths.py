"""The files of rows' paths: below the data folder, by their name or the only one alike."""

import unicodedata

import pandas as pd
import pytest

from vqa_utils.data.pictures.paths import PictureFolder, beside_or_in, describe_alike, locate

KOREAN = unicodedata.normalize("NFC", "images/사과 그림.png")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "x.png").touch()
    (tmp_path / "secret.png").touch()
    return tmp_path / "data"


def find(folder, path):
    return PictureFolder(folder).find(path)


@pytest.mark.parametrize(
    "path", ["images/x.png", "./images//x.png", "images/../images/x.png", "{folder}/images/x.png"]
)
def test_a_path_that_ends_below_the_folder_is_found(folder, path):
    found = find(folder, path.format(folder=folder))
    assert (found.file, found.problem, found.is_alike) == ("images/x.png", "", False)


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "images/../../secret.png",
        "{folder}/../secret.png",
        "/etc/passwd",
        "/proc/self/mem",
        "..\\secret.png",
        r"\\server\images\x.png",
        "images\\..\\..\\secret.png",
        "../data2/x.png",
    ],
)
def test_a_path_that_leads_out_is_refused(folder, path):
    (folder.parent / "data2").mkdir()  # its name begins as the folder's
    (folder.parent / "data2" / "x.png").touch()
    found = find(folder, path.format(folder=folder))
    assert found.is_refused and "leads out" in found.problem


@pytest.mark.parametrize("path", ["images/link.png", "more/secret.png", "images/LINK.png"])
def test_links_that_lead_out_are_refused_with_their_target(folder, path):
    (folder / "images" / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "more").symlink_to(folder.parent)
    found = find(folder, path)
    assert found.is_refused and str(folder.parent) in found.problem


def test_links_within_the_folder_and_a_folder_that_is_one_are_followed(folder):
    (folder / "images" / "link.png").symlink_to("x.png")
    (folder / "more").symlink_to("images", target_is_directory=True)
    linked = folder.parent / "linked"
    linked.symlink_to(folder, target_is_directory=True)
    for path in ("images/link.png", "more/x.png", f"{linked}/images/x.png"):
        assert find(linked, path).problem == ""


def test_a_link_to_itself_is_no_endless_search(folder):
    (folder / "loop").symlink_to("loop")
    assert find(folder, "loop/x.png").problem and not find(folder, "loop").is_refused


@pytest.mark.parametrize(
    ("file", "path"),
    [
        (unicodedata.normalize("NFD", KOREAN), KOREAN),
        (KOREAN, unicodedata.normalize("NFD", KOREAN)),
        ("images/a.png", "images/a.png "),
        ("images/a.png", " images/a.png"),
        ("images/a .png", "images/a.png"),
        ("images/a.png", "images\\a.png"),
        ("images/a.png", "Images/A.PNG"),
        ("images/a.jpg", "images/a.JPG"),
        ("images/a.jpeg", "images/a.jpg"),
        ("images/a.JPG", "images/a.png"),
        ("images/a.png", "images/a"),
        (unicodedata.normalize("NFD", "images/É.JPG"), "images\\é.jpeg"),
    ],
)
def test_the_only_file_with_a_name_alike_is_found(folder, file, path):
    (folder / file).touch()
    found = find(folder, path)
    assert (found.file, found.problem, found.is_alike) == (file, "", True)


def test_two_files_with_a_name_alike_are_named_and_neither_is_taken(folder):
    for name in ("a.JPG", "a.png"):
        (folder / "images" / name).touch()
    found = find(folder, "images/a.jpg")
    assert "'images/a.JPG'" in found.problem and "'images/a.png'" in found.problem
    assert found.file == "images/a.jpg"
    assert find(folder, "images/a.png").problem == ""


@pytest.mark.parametrize("path", ["images/y.png", "y", "", ".", "images/x.png/y"])
def test_a_name_like_none_is_not_found(folder, path):
    (folder / "y.png").mkdir()
    assert find(folder, path).problem


@pytest.mark.parametrize(
    ("path", "datum"),
    [
        ("https://example.org/x.png", "URL"),
        ("file:///etc/passwd", "URL"),
        ("data:image/png;base64,iVBORw0KGgo=", "base64"),
        ("/9j/iVBORw0" * 9_000, "99,000 characters of base64"),
        ("/9j/4AAQSkZJRg" * 60, "840 characters of base64"),
        ("images/" + "가" * 86, "258 bytes"),
        ("images/" * 900, "6,300 bytes"),
        ("images/x\0.png", "NUL"),
        (r"C:\images\x.png", "Windows"),
    ],
)
def test_a_path_that_can_be_none_is_told_in_a_word(folder, path, datum):
    found = find(folder, path)
    assert datum in found.problem and len(found.problem) < 100
    assert found.file == path


def test_each_path_is_looked_for_once_and_the_alike_are_said_with_an_example(folder):
    (folder / "images" / "a.JPG").touch()
    paths = pd.Series(["images/a.jpg", "images/x.png", "images/a.jpg"], index=[5, 1, 0])
    asked = []

    def look(path):
        asked.append(path)
        return find(folder, path)

    located = locate(paths, look)
    assert asked == ["images/a.jpg", "images/x.png"]
    assert located["file"].to_dict() == {5: "images/a.JPG", 1: "images/x.png", 0: "images/a.JPG"}
    said = describe_alike(located)
    assert said.startswith("1 ") and "'images/a.JPG'" in said and "'images/a.jpg'" in said


def test_rows_of_another_csv_show_pictures_beside_it_or_in_the_data(folder):
    other = folder.parent / "other"
    other.mkdir()
    for file in ("a.png", "b.JPG", "x.PNG"):
        (other / file).touch()
    (folder / "b.jpg").touch()
    look = beside_or_in(other / "more.csv", PictureFolder(folder))
    assert look("a.png").file == str(other / "a.png")
    assert look("images/x.png").file == str(folder / "images/x.png")
    assert look("b.jpg").file == str(folder / "b.jpg")  # its name alone goes before one alike
    assert look("x.png").file == str(other / "x.PNG")
    assert look("../secret.png").is_refused


def test_a_csv_below_the_data_may_lead_to_pictures_beside_its_directory(folder):
    (folder / "more").mkdir()
    look = beside_or_in(folder / "more" / "more.csv", PictureFolder(folder))
    assert look("../images/x.png").file == str(folder / "images/x.png")
    assert look("../../secret.png").is_refused

"""Devices, pipes, sockets, folders and the kernel's files are refused without being opened."""

import os
import socket
from pathlib import Path

import pytest

from vqa_utils.data.fingerprint import data_hash
from vqa_utils.data.pictures.files import PictureError, stamp_if_any, stamp_of
from vqa_utils.data.pictures.images import read_images
from vqa_utils.presets import preset


def make_folder(path):
    path.mkdir()


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_to(target):
    return lambda path: path.symlink_to(target)


ODD_FILES = {
    "folder": make_folder,
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": link_to("/dev/zero"),
    "kernel": link_to("/proc/kmsg"),
}


@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="needs the kernel's files of Linux")
def test_odd_files_are_refused_unopened(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    ODD_FILES[kind](Path("odd.png"))
    monkeypatch.setattr(Path, "open", None)
    problem = read_images(tmp_path, ["odd.png"])["problem"].item()
    assert kind in problem


def test_links_to_pictures_are_followed_and_circles_refused(tmp_path):
    (tmp_path / "real.png").write_bytes(b"x")
    (tmp_path / "link.png").symlink_to("real.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    assert stamp_of(tmp_path / "link.png") == stamp_of(tmp_path / "real.png")
    assert stamp_if_any(tmp_path / "circle.png") is None
    with pytest.raises(PictureError, match=r"circle\.png"):
        stamp_of(tmp_path / "circle.png")


def test_a_file_that_may_not_be_read_is_one_problem(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"x")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    problem = read_images(tmp_path, ["a.png"])["problem"].item()
    assert "Permission denied" in problem


def test_the_datas_hash_opens_no_pipe(korean_folder, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for file in korean_folder.glob("*.csv"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "images").mkdir()
    first = next((korean_folder / "images").iterdir()).name
    missing = data_hash(preset("demo", data=str(folder)))
    os.mkfifo(folder / "images" / first)
    assert data_hash(preset("demo", data=str(folder))) == missing

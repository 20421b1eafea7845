"""Pictures as the model sees them, and what is kept of each in images.csv so that it is read once."""

import builtins
import dataclasses
import io
import os
import runpy
import shutil
from collections import Counter
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from korean_challenge import write_korean_challenge
from PIL import Image

from vqa_utils.artifacts.files import sha256
from vqa_utils.artifacts.paths import NOTEBOOKS, ROOT, RunPaths
from vqa_utils.data.challenge import DataError, load_challenge, load_test
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.data.folds import FoldError
from vqa_utils.data.pictures import images as images_module
from vqa_utils.data.pictures.images import (
    ImageFile,
    image_hashes,
    keep_images,
    perceptual_hash,
    read_images,
)
from vqa_utils.presets import preset
from vqa_utils.running.notebooks.execution import execute
from vqa_utils.running.resolution import start_run


@pytest.fixture
def folder(tmp_path):
    return write_korean_challenge(tmp_path / "data", train=6, test=3)


@pytest.fixture
def opened(monkeypatch):
    """How often each picture is opened, by its name."""
    counts = Counter()

    def counting(open_file):
        def count_and_open(file, *arguments, **options):
            if isinstance(file, str | Path) and str(file).endswith((".png", ".jpg")):
                counts[Path(file).name] += 1
            return open_file(file, *arguments, **options)

        return count_and_open

    for module in (builtins, io):  # Pillow opens by the first, pathlib by the second
        monkeypatch.setattr(module, "open", counting(module.open))
    return counts


def read_and_keep(folder, paths, table):
    images = read_images(folder, paths, table)
    keep_images(images, table)
    return images


def edit(image, **pixels):
    """Draw another picture into a file."""
    Image.new("RGB", (64, 64), **pixels).save(image)


def test_a_picture_that_many_rows_show_is_opened_once(folder, opened):
    images = read_images(folder, ["images/train_0000.png"] * 6 + ["images/train_0001.png"])
    assert opened == {"train_0000.png": 1, "train_0001.png": 1} and len(images) == 2


def test_a_row_says_all_that_one_reading_found(folder, tmp_path):
    path = "images/train_0000.png"
    images = read_and_keep(folder, [path], tmp_path / "images.csv")
    status = (folder / path).stat()
    with Image.open(folder / path) as image:
        look = perceptual_hash(image)
    expected = ImageFile(
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        sha256(folder / path)[:16],
        64,
        64,
        look,
        "",
        "",
    )
    assert ImageFile(*images.loc[path]) == expected
    saved = pd.read_csv(tmp_path / "images.csv", dtype=str, keep_default_na=False)
    assert saved.loc[0].tolist() == [path, *map(str, expected)]
    assert list(saved) == ["path", *ImageFile._fields]


def test_only_new_and_changed_files_are_opened_again(folder, tmp_path, opened):
    table = tmp_path / "images.csv"
    paths = [f"images/train_{i:04d}.png" for i in range(4)]
    first = read_and_keep(folder, paths[:3], table)
    edit(folder / paths[1], color="red")
    status = (folder / paths[2]).stat()  # the same bytes at another time
    os.utime(folder / paths[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    opened.clear()
    second = read_and_keep(folder, paths, table)
    assert opened == {"train_0001.png": 1, "train_0002.png": 1, "train_0003.png": 1}
    assert (first["hash"] == second["hash"].head(3)).tolist() == [True, False, True]
    opened.clear()
    written = table.stat()
    pd.testing.assert_frame_equal(read_and_keep(folder, paths, table), second)
    assert not opened and table.stat().st_ino == written.st_ino  # nor is the table written


def test_a_picture_of_another_folder_is_read_though_bytes_and_mtime_are_the_same(folder, tmp_path):
    path, table = "images/train_0000.bmp", tmp_path / "images.csv"
    Image.new("RGB", (64, 64), "red").save(folder / path)
    first = read_and_keep(folder, [path], table)
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64), "blue").save(other / path)
    status = (folder / path).stat()
    os.utime(other / path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = read_images(other, [path], table)
    assert list(first["bytes"]) == list(second["bytes"])
    assert list(first["mtime_ns"]) == list(second["mtime_ns"])
    assert list(second["hash"]) == [sha256(other / path)[:16]] != list(first["hash"])


def test_a_file_of_another_version_is_not_trusted(folder, tmp_path, opened):
    table = tmp_path / "images.csv"
    pd.DataFrame({"path": ["images/train_0000.png"], "hash": ["0"]}).to_csv(table, index=False)
    images = read_and_keep(folder, ["images/train_0000.png"], table)
    assert opened["train_0000.png"] == 1 and len(images["hash"].iloc[0]) == 16


def test_after_an_error_only_the_mended_picture_is_opened(folder, tmp_path, opened):
    config = preset("demo", data=str(folder))
    broken = folder / "images/train_0003.png"
    contents = broken.read_bytes()
    status = broken.stat()
    broken.write_bytes(contents[:60])
    with pytest.raises(DataError, match="train_0003"):
        load_challenge(config, images=tmp_path / "images.csv")
    broken.write_bytes(contents)
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    opened.clear()
    challenge = load_challenge(config, images=tmp_path / "images.csv")
    assert opened == {"train_0003.png": 1} and challenge.images["problem"].eq("").all()


@pytest.mark.parametrize("spoilt", ["a picture", "a row"])
def test_a_run_that_is_refused_leaves_no_folder(folder, tmp_path, monkeypatch, spoilt):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    if spoilt == "a picture":
        (folder / "images/train_0003.png").unlink()
    else:
        train = pd.read_csv(folder / "train.csv").assign(answer="z")
        train.to_csv(folder / "train.csv", index=False)
    with pytest.raises(DataError):
        start_run(RunPaths("r"), preset("demo", data=str(folder)))
    assert not RunPaths("r").folder.exists()


def test_a_run_without_the_folds_that_it_builds_on_leaves_no_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    with pytest.raises(FoldError, match="02_folds"):
        start_run(RunPaths("r"), preset("demo", data=str(folder)), check_folds=True)
    assert not RunPaths("r").folder.exists()


@pytest.mark.parametrize("contents", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_no_picture_is_told_without_an_objects_address(tmp_path, contents):
    (tmp_path / "a.png").write_bytes(contents)
    problem = images_module.read_images(tmp_path, ["a.png"])["problem"].item()
    assert problem.startswith("found ") and "0x" not in problem and "object at" not in problem


def test_a_name_that_no_file_can_have_is_a_missing_file(folder, tmp_path):
    images = read_images(folder, ["x" * 5000, "a\0b"])
    assert images["problem"].eq("found no file").all()


def test_a_run_opens_each_picture_once(folder, tmp_path, monkeypatch, opened):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    paths, config = RunPaths("interactive"), preset("demo", data=str(folder), n_folds=2)
    pictures = sorted(path.name for path in (folder / "images").iterdir())
    start_run(paths, config)
    assert opened == dict.fromkeys(pictures, 1)
    data_hash(config, paths.images)
    runpy.run_path(str(NOTEBOOKS / "02_folds.py"))
    start_run(paths, config, check_folds=True)
    assert opened == dict.fromkeys(pictures, 1)
    runpy.run_path(str(NOTEBOOKS / "01_eda.py"))
    shown = [name for name in pictures if name.startswith("train")]  # a gallery of eight at most
    assert opened == Counter(pictures) + Counter(shown)


def test_pictures_of_another_test_set_are_opened_once(folder, tmp_path, opened):
    for _ in range(3):  # the command, and notebook 04 of two folds
        test, _ = load_test(folder, tmp_path / "images.csv")
    assert opened == {Path(path).name: 1 for path in test["path"]}
    (folder / test["path"][1]).unlink()
    with pytest.raises(DataError, match=r"test\.csv line 3: .*test_0007"):
        load_test(folder, tmp_path / "images.csv")


def test_the_datas_hash_is_of_contents_alone(folder, tmp_path):
    table = tmp_path / "images.csv"
    config = preset("demo", data=str(folder))
    load_challenge(config, images=table)
    known = data_hash(config)
    assert data_hash(config, table) == known
    other = tmp_path / "elsewhere"
    shutil.copytree(folder, other, copy_function=shutil.copyfile)  # with new times
    moved = dataclasses.replace(config, data=str(other))
    assert data_hash(moved) == data_hash(moved, table) == known
    for name in ("train_0002", "test_0008"):
        edit(folder / f"images/{name}.png", color="red")
        changed = data_hash(config, table)
        assert changed == data_hash(config) != known
        known = changed


def test_the_datas_hash_changes_with_a_picture_that_is_gone(folder, tmp_path):
    table = tmp_path / "images.csv"
    config = preset("demo", data=str(folder))
    load_challenge(config, images=table)
    before = data_hash(config, table)
    (folder / "images/test_0008.png").unlink()
    assert data_hash(config, table) == data_hash(config) != before


def test_a_look_at_the_hash_leaves_no_file(folder, tmp_path):
    data_hash(preset("demo", data=str(folder)), tmp_path / "images.csv")
    assert not (tmp_path / "images.csv").exists()


@pytest.mark.parametrize(
    ("delay", "is_terminal", "shown"), [(0, True, True), (60, True, False), (0, False, False)]
)
def test_a_bar_is_shown_in_a_terminal_if_reading_takes_long(
    folder, monkeypatch, delay, is_terminal, shown
):
    terminal = io.StringIO()
    terminal.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(images_module, "BAR_AFTER_SECONDS", delay)
    image_hashes(folder, ["images/train_0000.png"])
    assert ("hashing images" in terminal.getvalue()) == shown


@pytest.mark.slow
def test_a_notebook_has_the_same_outputs_on_a_slow_machine(notebooks, folder, tmp_path):
    slow = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
        "from vqa_utils.data.pictures import images; images.BAR_AFTER_SECONDS = 0"
    )
    reads = f"images.image_hashes(Path({str(folder)!r}), ['images/train_0000.png'])"
    notebooks("reads", slow, reads)
    execute("reads", tmp_path / "out.ipynb", {})
    *_, cell = nbformat.read(tmp_path / "out.ipynb", 4).cells
    assert [output.output_type for output in cell.outputs] == ["execute_result"]

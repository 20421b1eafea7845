"""A large picture is decoded once, alone and within bounds, and looks as if decoded in full."""

import io
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from filelock import FileLock, Timeout
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from vqa_utils.artifacts.paths import ROOT, picture_copies_dir
from vqa_utils.data.pictures import copies
from vqa_utils.data.pictures.copies import LOCK, open_picture, picture_size
from vqa_utils.data.pictures.images import read_images

SIDE, COPY_SIDE = 64, 128  # px: an eighth of those of the largest preset
MEGAPIXELS_123 = 11_100  # px a side


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))


@pytest.fixture
def every_picture_is_large(monkeypatch):
    monkeypatch.setattr(copies, "LARGE_BYTES", 0)
    monkeypatch.setattr(copies, "COPY_SIDE", COPY_SIDE)


@pytest.fixture
def decoded(monkeypatch):
    """The pictures that are decoded to be reduced."""
    names = []
    decode_reduced = copies._decode_reduced

    def counting(path, side):
        names.append(path.name)
        return decode_reduced(path, side)

    monkeypatch.setattr(copies, "_decode_reduced", counting)
    return names


def photograph(width, height):
    """A picture with edges, gradients and noise at all sizes."""
    rng = np.random.default_rng(0)
    layers = np.zeros((height, width, 3))
    for cells in (4, 16, 64):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        layers += np.asarray(coarse.resize((width, height), Image.Resampling.NEAREST))
    noise = rng.normal(0, 20, layers.shape)
    return Image.fromarray((layers / 3 + noise).clip(0, 255).astype(np.uint8))


def kept_copies():
    return sorted(picture_copies_dir().glob("*.png"))


@pytest.mark.usefixtures("every_picture_is_large")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "turned.jpg", "a.webp"])
@pytest.mark.parametrize(
    "width", [640, 639, 637]
)  # reduced to a fourth of a picture, or a bit more
def test_a_copy_looks_as_if_the_whole_was_resized(tmp_path, name, width):
    """It differs less than another filter of Pillow's would."""
    photo = Image.fromarray(load_sample_image("china.jpg")).crop((0, 0, width, 427))
    exif = Image.Exif()
    exif[0x0112] = 3 if name == "turned.jpg" else 1
    photo.save(tmp_path / name, quality=95, exif=exif)
    with Image.open(tmp_path / name) as image:
        whole = ImageOps.exif_transpose(image).convert("RGB")
    picture = open_picture(tmp_path / name, SIDE)
    assert picture.image.width < whole.width / 2
    assert (picture.width, picture.height) == whole.size
    model = (72, 48)
    expected = np.asarray(whole.resize(model), float)
    from_copy = np.asarray(picture.image.resize(model), float)
    other_filter = np.asarray(whole.resize(model, Image.Resampling.LANCZOS), float)
    assert np.abs(from_copy - expected).mean() < np.abs(other_filter - expected).mean()


@pytest.mark.usefixtures("every_picture_is_large")
def test_a_large_picture_is_decoded_once(tmp_path, decoded):
    photograph(200, 190).save(tmp_path / "a.png")
    read_images(tmp_path, ["a.png"])
    first = open_picture(tmp_path / "a.png", SIDE)
    again = open_picture(tmp_path / "a.png", 32)
    assert decoded == ["a.png"] and first.image.tobytes() == again.image.tobytes()
    assert first.image.width * first.image.height >= COPY_SIDE**2


@pytest.mark.usefixtures("every_picture_is_large")
def test_a_changed_picture_and_a_larger_size_make_another_copy(tmp_path, decoded):
    path = tmp_path / "a.png"
    photograph(300, 290).save(path)
    small = open_picture(path, SIDE).image
    assert open_picture(path, 128).image.size > small.size
    Image.new("RGB", (150, 150), "red").save(path)
    assert open_picture(path, SIDE).image.getcolors(1) == [(150 * 150, (255, 0, 0))]
    assert decoded == ["a.png"] * 3


@pytest.mark.usefixtures("every_picture_is_large")
@pytest.mark.parametrize("left", [0, 100, -5000])
def test_a_torn_copy_is_made_again(tmp_path, decoded, left):
    photograph(150, 140).save(tmp_path / "a.png")
    whole = open_picture(tmp_path / "a.png", SIDE).image.tobytes()
    [copy] = kept_copies()
    copy.write_bytes(copy.read_bytes()[:left])
    assert open_picture(tmp_path / "a.png", SIDE).image.tobytes() == whole
    assert decoded == ["a.png"] * 2


@pytest.mark.usefixtures("every_picture_is_large")
def test_a_turned_picture_has_the_size_that_it_is_seen_in(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(300, 240).save(tmp_path / "a.jpg", exif=exif)
    for _ in range(2):  # made, and kept
        picture = open_picture(tmp_path / "a.jpg", SIDE)
        assert (picture.width, picture.height) == (240, 300)
        assert picture.image.height > picture.image.width
    assert picture_size(tmp_path / "a.jpg") == (300, 240)


@pytest.mark.usefixtures("every_picture_is_large")
def test_one_large_picture_is_decoded_at_a_time(tmp_path, monkeypatch):
    decode_reduced = copies._decode_reduced
    lock_was_free = []

    def looking(path, side):
        try:
            FileLock(picture_copies_dir() / LOCK).acquire(blocking=False)
            lock_was_free.append(path.name)
        except Timeout:
            pass
        return decode_reduced(path, side)

    monkeypatch.setattr(copies, "_decode_reduced", looking)
    for name in ("a.png", "b.png"):
        photograph(140, 140).save(tmp_path / name)
    threads = [
        threading.Thread(target=open_picture, args=(tmp_path / name, SIDE))
        for name in ("a.png", "b.png", "a.png")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept_copies()) == 2 and not lock_was_free


@pytest.mark.usefixtures("every_picture_is_large")
def test_who_waited_for_a_copy_takes_it(tmp_path, monkeypatch, decoded):
    read_copy = copies._read_copy
    looks = threading.Semaphore(0)

    def counting(copy, side):
        found = read_copy(copy, side)
        looks.release()
        return found

    monkeypatch.setattr(copies, "_read_copy", counting)
    photograph(150, 140).save(tmp_path / "a.png")
    threads = [
        threading.Thread(target=open_picture, args=(tmp_path / "a.png", SIDE)) for _ in range(3)
    ]
    picture_copies_dir().mkdir(parents=True)
    with FileLock(picture_copies_dir() / LOCK):
        for thread in threads:
            thread.start()
        for _ in threads:
            looks.acquire()  # each has looked, found no copy, and waits for the lock
    for thread in threads:
        thread.join()
    assert decoded == ["a.png"]


def test_small_pictures_have_no_copy(tmp_path):
    photograph(600, 500).save(tmp_path / "a.png")
    read_images(tmp_path, ["a.png"])
    assert open_picture(tmp_path / "a.png", 64).image.size == (600, 500)
    assert not picture_copies_dir().exists()


@pytest.mark.usefixtures("every_picture_is_large")
def test_a_torn_large_picture_is_one_problem(tmp_path):
    file = io.BytesIO()
    photograph(150, 140).save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue()[:5000])
    assert read_images(tmp_path, ["a.png"])["problem"].item().startswith("found ")
    assert not kept_copies()


MEASURE = """
import re, resource, sys
from pathlib import Path
from vqa_utils.data.pictures.copies import open_picture
from vqa_utils.data.pictures.files import PictureError

def megabytes(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000

limit = int((megabytes("VmSize") + float(sys.argv[2])) * 1e6)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = megabytes("VmRSS")
try:
    picture = open_picture(Path(sys.argv[1]), 448)
    print(picture.width, megabytes("VmHWM") - before)
except PictureError as error:
    print(error)
"""


def measure(path, most_megabytes):
    """Open a picture in a fresh process whose memory may grow by so much; return its words."""
    command = [sys.executable, "-c", MEASURE, str(path), str(most_megabytes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "check": True}
    return subprocess.run(command, env=environment, **options).stdout


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and reads memory as Linux")


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize(("mode", "most"), [("RGB", 580), ("RGBA", 580), ("L", 220)])
def test_123_megapixels_take_the_memory_of_one_decoder(tmp_path, mode, most):
    """4 bytes a pixel or 1, and some strips; 1,600 MB with a copy for each conversion."""
    side = MEGAPIXELS_123
    Image.new(mode, (side, side), "teal").save(tmp_path / "a.png", compress_level=1)
    width, megabytes = measure(tmp_path / "a.png", most_megabytes=2000).split()
    assert int(width) == side and float(megabytes) < most


@needs_linux
def test_a_picture_for_which_memory_lacks_is_one_problem(tmp_path):
    Image.new("L", (9000, 9000)).save(tmp_path / "a.png", compress_level=1)
    assert "a.png" in (said := measure(tmp_path / "a.png", most_megabytes=50)) and "memory" in said

"""A picture as the model sees it: RGB, upright, on white, within bounds; or one problem."""

import io
import random
import subprocess

import numpy as np
import pytest
from PIL import Image, ImageOps

from vqa_utils.data.pictures import decoding
from vqa_utils.data.pictures.copies import open_picture
from vqa_utils.data.pictures.decoding import FORMATS, decode, opened
from vqa_utils.data.pictures.files import PictureError
from vqa_utils.data.pictures.images import read_images

ORIENTATION = 0x0112
RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (30, 50, 3), np.uint8))
CHANGED_FILES = 40  # of each format
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def seen(path):
    return open_picture(path, 64).image


def problem_of(path):
    return read_images(path.parent, [path.name])["problem"].item()


def exif_of(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    NOISE.save(tmp_path / "a.png", exif=exif_of(orientation))
    with Image.open(tmp_path / "a.png") as image:
        expected = ImageOps.exif_transpose(image)
    picture = open_picture(tmp_path / "a.png", 64)
    assert picture.image.tobytes() == expected.tobytes()
    assert (picture.width, picture.height) == expected.size


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_out_of_bounds_is_left(tmp_path, orientation):
    NOISE.save(tmp_path / "a.png", exif=exif_of(orientation))
    assert seen(tmp_path / "a.png").tobytes() == NOISE.tobytes()


@pytest.mark.parametrize("kind", [0, 1, 2, 5, 7, 12, 99])  # byte, text, fraction, bytes, double
def test_an_orientation_of_another_type_is_never_in_the_way(tmp_path, kind):
    exif = exif_of(6).tobytes()
    changed = exif.replace(b"\x01\x12\x00\x03", b"\x01\x12\x00" + bytes([kind]))
    assert changed != exif
    NOISE.save(tmp_path / "a.png", exif=changed)
    assert set(seen(tmp_path / "a.png").size) == set(NOISE.size)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense"])
def test_corrupt_exif_is_never_in_the_way(tmp_path, name, exif):
    NOISE.save(tmp_path / name, exif=exif)
    assert seen(tmp_path / name).size == NOISE.size and problem_of(tmp_path / name) == ""


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_put_on_white(tmp_path, mode):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).convert(mode).save(tmp_path / "clear.png")
    assert seen(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_deep_greys_transparent_sample_is_put_on_white(tmp_path):
    samples = np.array([[0, 1000], [30_000, 65_535]], np.uint16)
    Image.fromarray(samples).save(tmp_path / "p.png", transparency=1000)
    assert np.asarray(seen(tmp_path / "p.png"))[..., 0].tolist() == [[0, 255], [117, 255]]


def test_a_palettes_transparent_colour_is_put_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=0)
    pixels = np.asarray(seen(tmp_path / "p.png"))
    assert pixels.tolist() == [[[255, 255, 255], [0, 0, 255]]]


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "a.tif"), ("CMYK", "a.jpg"), ("1", "a.png")])
def test_colours_of_other_modes_stay(tmp_path, mode, name):
    Image.new("RGB", (16, 16), "white").convert(mode).save(tmp_path / name)
    assert min(seen(tmp_path / name).getpixel((8, 8))) >= 253
    Image.new("RGB", (16, 16), "black").convert(mode).save(tmp_path / name)
    assert max(seen(tmp_path / name).getpixel((8, 8))) <= 2


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif", "a.png"])
def test_of_several_frames_the_first_is_shown_and_named(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert seen(tmp_path / name).getpixel((0, 0)) == (255, 0, 0)
    assert "several frames" in read_images(tmp_path, [name])["note"].item()


def test_a_photographs_own_preview_is_no_second_frame(tmp_path):
    NOISE.save(tmp_path / "a.mpo", save_all=True, append_images=[NOISE.reduce(2)])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    images = read_images(tmp_path, ["a.jpg"])
    assert images[["note", "problem"]].to_numpy().tolist() == [["", ""]]


def test_a_format_that_starts_a_program_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    assert "PNG, JPEG" in problem_of(tmp_path / "a.png")
    assert not {"EPS", "PDF", "WMF", "ICO"} & set(FORMATS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[("a.png", {}), ("a.jpg", {}), ("a.jpg", {"progressive": True}), ("a.webp", {})],
        *[("a.gif", {}), ("a.bmp", {}), ("a.tif", {}), ("a.tif", {"compression": "tiff_lzw"})],
        *[("a.ppm", {}), ("a.jp2", {}), ("a.avif", {}), ("a.tga", {})],
    ],
)
def test_changed_bytes_give_a_picture_or_one_problem(tmp_path, name, options):
    draw = random.Random(0)
    file = io.BytesIO()
    Image.init()
    exif = exif_of(6) if name in ("a.png", "a.jpg", "a.webp", "a.tif", "a.avif") else None
    format_ = Image.EXTENSION[f".{name.partition('.')[2]}"]
    NOISE.save(file, format_, **options, **({"exif": exif} if exif else {}))
    problems = []
    for _ in range(CHANGED_FILES):
        contents = bytearray(file.getvalue())
        for _ in range(draw.choice([1, 2, 5, 30])):
            contents[draw.randrange(len(contents))] = draw.choice([0, 255, draw.randrange(256)])
        if draw.random() < 0.3:
            del contents[draw.randrange(len(contents)) :]
        (tmp_path / name).write_bytes(contents)
        problems.append(problem_of(tmp_path / name))
    assert any(problems)
    assert not [problem for problem in problems if "object at" in problem or "0x" in problem]


@pytest.mark.parametrize(
    "contents", [b"GIF89a" + bytes(7) + b";", b"P6 0 0 255\n", b"P5 0 9 255\n"]
)
def test_a_picture_without_pixels_is_one_problem(tmp_path, contents):
    (tmp_path / "a.png").write_bytes(contents)
    assert problem_of(tmp_path / "a.png").startswith("found ")


def test_a_picture_beyond_the_bound_is_refused_by_its_header(tmp_path, monkeypatch):
    NOISE.save(tmp_path / "a.png")
    monkeypatch.setattr(decoding, "MOST_BYTES", NOISE.width * NOISE.height * 4 - 1)
    monkeypatch.setattr(Image.Image, "load", None)
    problem = problem_of(tmp_path / "a.png")
    assert "50 x 30 px" in problem and "smaller" in problem


def test_running_out_of_memory_is_a_problem_of_the_picture(tmp_path, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    NOISE.save(tmp_path / "a.png")
    monkeypatch.setattr(decoding, "grey_levels", no_memory)
    problem = problem_of(tmp_path / "a.png")
    assert "memory" in problem and "50 x 30 px" in problem
    with pytest.raises(PictureError, match=r"a\.png"):
        open_picture(tmp_path / "a.png", 64)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "CMYK"])
def test_a_reduction_in_strips_is_that_of_the_whole(tmp_path, monkeypatch, mode):
    samples = RNG.integers(0, 256, (332, 256, 3), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(samples[..., 0].astype(np.uint16) << 8)
    else:
        image = Image.fromarray(samples).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(samples[..., 1]))
    path = tmp_path / "a.tif"
    image.save(path)
    monkeypatch.setattr("vqa_utils.data.pictures.depth.STRIP_BYTES", 8 * 256 * 20)
    with path.open("rb") as file, opened(file, path) as image:
        reduced = decode(image, path, side=70)
    whole = seen(path)
    factor = 4  # sqrt(256 * 332) is 4.2 times 70
    assert reduced.image.tobytes() == whole.reduce(factor).tobytes()
    assert (reduced.width, reduced.height) == whole.size

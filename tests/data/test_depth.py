"""Pictures of more than 8 bits a sample keep their brightness."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vqa_utils.data.pictures.copies import open_picture
from vqa_utils.data.pictures.images import read_images

RAMP = np.linspace(0, 1, 256)[None].repeat(3, 0)  # [3, 256], black to white
PNG_GREY, PNG_RGB, PNG_RGBA = 0, 2, 6
SHORT, LONG = 3, 4  # types of a TIFF's fields
NO_COMPRESSION, DEFLATE = 1, 8


def grey(path):
    """The first row of a picture as the model sees it; all three colours are the same."""
    pixels = np.asarray(open_picture(path, 64).image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].astype(int)


def assert_brightness(path):
    assert np.abs(grey(path) - 255 * RAMP[0]).max() <= 1


def chunk(name, contents):
    body = name + contents
    return struct.pack(">I", len(contents)) + body + struct.pack(">I", zlib.crc32(body))


def write_png_16(path, samples, colour_type):
    """Write samples of 16 bits, which Pillow writes of grey alone."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_of_some_bits_in_a_png_of_16(tmp_path, bits):
    samples = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)
    Image.fromarray(samples).save(tmp_path / "grey.png")
    assert_brightness(tmp_path / "grey.png")
    assert f"{bits} bits" in read_images(tmp_path, ["grey.png"])["note"].item()


def test_grey_of_16_bits_is_its_high_byte(tmp_path):
    samples = np.array([[0, 30000, 30100, 65535]], np.uint16)
    Image.fromarray(samples).save(tmp_path / "grey.png")
    assert grey(tmp_path / "grey.png").tolist() == [0, 117, 117, 255]


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("colour_type", [PNG_RGB, PNG_RGBA])
def test_colours_of_some_bits_in_a_png_of_16(tmp_path, bits, colour_type):
    samples = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)[..., None].repeat(3, -1)
    if colour_type == PNG_RGBA:
        opaque = np.full((*samples.shape[:2], 1), 2**16 - 1, np.uint16)
        samples = np.concatenate([samples, opaque], -1)
    write_png_16(tmp_path / "colour.png", samples, colour_type)
    assert_brightness(tmp_path / "colour.png")


def write_tiff(path, samples, order, compression):
    """Write samples without a sign, in a byte order and a compression that Pillow writes not."""
    height, width, bands = samples.shape
    bits = 8 * samples.itemsize
    strip = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    strip = zlib.compress(strip) if compression == DEFLATE else strip
    bits_at, strip_at = 8, 14  # after the header; after the bits of three bands
    entries = {  # type, count and value by tag
        256: (LONG, 1, width),
        257: (LONG, 1, height),
        258: (SHORT, bands, bits if bands == 1 else bits_at),
        259: (SHORT, 1, compression),
        262: (SHORT, 1, 2 if bands == 3 else 1),  # RGB, or 0 is black
        273: (LONG, 1, strip_at),
        277: (SHORT, 1, bands),
        278: (LONG, 1, height),
        279: (LONG, 1, len(strip)),
    }
    directory = struct.pack(f"{order}H", len(entries))
    for tag, (kind, count, value) in entries.items():
        is_short = kind == SHORT and count == 1
        field = struct.pack(f"{order}H2x" if is_short else f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, count) + field
    magic = {"<": b"II", ">": b"MM"}[order]
    header = magic + struct.pack(f"{order}HI", 42, strip_at + len(strip))
    bits_of_bands = struct.pack(f"{order}HHH", bits, bits, bits)
    path.write_bytes(header + bits_of_bands + strip + directory + bytes(4))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [NO_COMPRESSION, DEFLATE])
def test_colours_of_12_bits_in_a_tiff_of_16(tmp_path, order, compression):
    samples = np.rint(RAMP * 4095).astype(np.uint16)[..., None].repeat(3, -1)
    write_tiff(tmp_path / "c.tif", samples, order, compression)
    assert_brightness(tmp_path / "c.tif")


def test_32_bits_without_a_sign(tmp_path):
    samples = np.rint(RAMP * (2**32 - 1)).astype(np.uint32)[..., None]
    write_tiff(tmp_path / "u.tif", samples, "<", NO_COMPRESSION)
    assert_brightness(tmp_path / "u.tif")


@pytest.mark.parametrize("white", [1, 255, 4095, 65535, 2**32 - 1])
def test_fractions(tmp_path, white):
    Image.fromarray((RAMP * white).astype(np.float32)).save(tmp_path / "f.tif")
    assert_brightness(tmp_path / "f.tif")


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_below_zero_are_stretched(tmp_path, kind):
    Image.fromarray((RAMP * 4000 - 1000).astype(kind)).save(tmp_path / "scan.tif")
    assert_brightness(tmp_path / "scan.tif")


def test_fractions_that_are_no_numbers_are_black(tmp_path):
    samples = np.array([[np.nan, -np.inf, 0, 0.5, 1, np.inf]], np.float32)
    Image.fromarray(samples).save(tmp_path / "f.tif")
    assert grey(tmp_path / "f.tif").tolist() == [0, 0, 0, 128, 255, 255]
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "none.tif")
    assert grey(tmp_path / "none.tif").tolist() == [0] * 4

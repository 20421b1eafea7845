"""Bring samples of 10, 12, 16, 32 bits or fractions to 8 bits at the brightness that is meant.

A file of 16 bits may hold the 10 or 12 that a sensor gave, and rarely says so. The depth taken is
the least usual one that holds the brightest sample.
"""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits a sample of cameras, scanners and microscopes
STRIP_BYTES = 2**24  # of a strip as numbers of 8 bytes, so that large pictures have no copy
WHITE = 255
SAMPLE_FORMAT, UNSIGNED = 339, (1,)  # a TIFF tag; Pillow holds 32 bits as signed numbers
NATIVE_LOW = {"little": "16B", "big": "16L"}[sys.byteorder]
LOW_BYTE = {"16B": "16L", "16L": "16B", "16N": NATIVE_LOW}  # Pillow's raw modes, for the other byte


class Levels(NamedTuple):
    """How samples become 8 bits: `shift` right, or from `black` to `white` if there is no shift."""

    dtype: np.dtype
    black: float
    white: float
    shift: int | None
    note: str
    """for people"""


def strips(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Cut a picture into strips of a multiple of some rows, each with its first row's number."""
    rows_held = STRIP_BYTES // (8 * image.width)
    rows = max(rows_held // multiple, 1) * multiple
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def grey_levels(image: Image.Image) -> Levels | None:
    """Find the levels of a loaded grey picture; None if it has 8 bits or colours."""
    if not image.mode.startswith(("I", "F")):
        return None
    dtype = np.asarray(image.crop((0, 0, 1, 1))).dtype
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {SAMPLE_FORMAT: None}
    if image.mode == "I" and tags.get(SAMPLE_FORMAT, UNSIGNED) == UNSIGNED:
        dtype = np.dtype(np.uint32)
    lowest, highest = _extrema(image, dtype)
    if lowest < 0:
        note = f"grey from {lowest:g} to {highest:g}"
        return Levels(dtype, lowest, highest, None, note)
    if image.mode == "F":
        return Levels(dtype, 0, _white(highest), None, f"grey as fractions up to {highest:g}")
    bits = depth_of(highest)
    return Levels(dtype, 0, 2**bits - 1, bits - 8, f"{bits} bits of grey")


def depth_of(highest: float) -> int:
    """The least usual depth in bits that holds a sample."""
    return min(bits for bits in DEPTHS if highest < 2**bits)


def _white(highest: float) -> float:
    """The fraction that is white: 1, or else that of a usual depth, or else the highest one."""
    if highest <= 1:
        return 1.0
    if highest >= 2 ** DEPTHS[-1]:
        return highest
    return 2.0 ** depth_of(highest) - 1


def as_8_bits(image: Image.Image, levels: Levels) -> Image.Image:
    """Convert a grey picture, or a strip of it, to mode L, with its transparent grey on white."""
    samples = np.asarray(image).view(levels.dtype)
    grey = _to_bytes(samples, levels)
    transparent = image.info.get("transparency")  # of a PNG: one of its samples
    if isinstance(transparent, int):
        grey[samples == transparent] = WHITE
    return Image.fromarray(grey)


def _to_bytes(samples: np.ndarray, levels: Levels) -> np.ndarray:
    if levels.shift is not None:
        return (samples.astype(np.uint32) >> levels.shift).astype(np.uint8)
    known = np.nan_to_num(samples.astype(float), posinf=levels.white, neginf=levels.black)
    span = max(levels.white - levels.black, np.finfo(float).tiny)
    shares = (known - levels.black) / span
    return np.rint(WHITE * shares.clip(0, 1)).astype(np.uint8)


def _extrema(image: Image.Image, dtype: np.dtype) -> tuple[float, float]:
    """The least and the greatest finite sample, (0, 0) if there is none."""
    lows, highs = [], []
    for _, strip in strips(image):
        samples = np.asarray(strip).view(dtype)
        finite = samples[np.isfinite(samples)]
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    return min(lows, default=0.0), max(highs, default=0.0)


class DeepColours(NamedTuple):
    """Colours of 16 bits a sample, of which Pillow decodes one byte: its raw mode says which."""

    layout: str
    """RGB or RGBA."""
    order: str
    """16B, 16L or 16N."""


def deep_colours(image: ImageFile.ImageFile) -> DeepColours | None:
    """Look how a file's samples lie before it is loaded; None if its colours have 8 bits."""
    arguments = image.tile[0].args if image.tile else ""
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    layout, _, order = str(raw).partition(";")
    is_deep = layout in ("RGB", "RGBA") and order in LOW_BYTE
    return DeepColours(layout, order) if is_deep else None


def brighten(image: Image.Image, low: ImageFile.ImageFile, colours: DeepColours) -> str:
    """Bring colours of 10 to 14 bits to 8, in place.

    Args:
        image: loaded, so that it has the high bytes.
        low: the same file, opened and not loaded yet; it is decoded to the low bytes.
        colours: of that file.

    Returns:
        A note for people; empty if 16 bits are in use, so that the high bytes are right.
    """
    bands = image.split()[:3]  # an alpha band is white for all depths
    highest = max(int(np.asarray(band.getextrema()).max()) for band in bands)
    bits = depth_of(highest << 8)
    if bits == 16:
        return ""
    raw = f"{colours.layout};{LOW_BYTE[colours.order]}"
    low.tile = [_with_raw_mode(tile, raw) for tile in low.tile]
    low.load()
    for top, strip in strips(image):
        high_bytes = np.asarray(strip)  # [rows, width, bands]
        low_bytes = np.asarray(low.crop((0, top, image.width, top + strip.height)))
        samples = high_bytes.astype(np.uint16) << 8 | low_bytes
        bright = (samples >> (bits - 8)).astype(np.uint8)
        bright[..., 3:] = high_bytes[..., 3:]
        image.paste(Image.fromarray(bright, image.mode), (0, top))
    return f"{bits} bits a colour"


def _with_raw_mode(tile: Any, raw: str) -> Any:
    arguments = (raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw
    return tile._replace(args=arguments)

"""Decode a picture's file as the model sees it: 8 bits of RGB, upright, on white, within bounds."""

import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from vqa_utils.data.pictures.depth import (
    Levels,
    as_8_bits,
    brighten,
    deep_colours,
    grey_levels,
    strips,
)
from vqa_utils.data.pictures.files import PictureError

# Raster formats that Pillow decodes itself. Of those left out, EPS starts Ghostscript, and an ICO's
# header hides how large its picture is. TGA is last, as it is known by no first bytes.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
NAMES = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF, TGA"

MOST_BYTES = 2 * 10**9  # for decoding one: 500 megapixels of PNG, 125 of WebP, far more of JPEG
RGB_BYTES = 4  # of a pixel in Pillow's memory
MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}  # of a pixel; 4 in all other modes
DECODER_BYTES = {"WEBP": 16, "AVIF": 12, "JPEG2000": 19}  # measured, see tests/bench/README.md
PROGRESSIVE_BYTES = 6  # a JPEG's coefficients, 2 bytes for each of 3 colours

# Pillow's, for torn or forged contents: found by changing bytes of files of all formats
EXIF_ERRORS = (SyntaxError, ValueError, KeyError, TypeError, OSError, OverflowError, struct.error)
WRONG_CONTENTS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error),
    *(IndexError, KeyError, OverflowError, RuntimeError),
)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the EXIF tag Orientation
TURNED_ASIDE = (5, 6, 7, 8)  # width and height change places
UPRIGHT = 1

Image.MAX_IMAGE_PIXELS = None  # a warning from 89 million pixels on; the bound here is in bytes
warnings.filterwarnings("ignore", module=r"PIL\.", category=UserWarning)  # of odd tags


class Picture(NamedTuple):
    """A decoded picture."""

    image: Image.Image
    """RGB, upright, perhaps reduced."""
    width: int
    height: int
    """px of the whole picture, upright."""
    note: str
    """How it was read, if that is not plain."""


@contextmanager
def opened(file: BinaryIO, path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open a picture's file, whose header alone is read, and let it be decoded inside.

    Raises:
        PictureError: it is no picture, torn, or takes more memory than there is.
    """
    file.seek(0)
    size = "unknown size"
    try:
        with Image.open(file, formats=_formats()) as image:
            size = f"{image.width:,} x {image.height:,} px"
            if not image.width or not image.height:
                raise PictureError(path, f"found one of {size}")
            yield image
    except UnidentifiedImageError as error:  # its words have the object's address
        problem = f"found {path.stat().st_size:,} bytes of no format that is read ({NAMES})"
        raise PictureError(path, problem) from error
    except MemoryError as error:
        problem = f"found one of {size}, which takes more memory than there is; make it smaller"
        raise PictureError(path, problem) from error
    except WRONG_CONTENTS as error:
        raise PictureError(path, f"found {str(error) or type(error).__name__}") from error


def decode(image: ImageFile.ImageFile, path: Path, side: int | None = None) -> Picture:
    """Decode an opened picture, with no second copy in full size.

    Args:
        image: opened and not loaded.
        path: its file.
        side: reduce it by a whole number, to no less than this number's square in pixels.

    Raises:
        PictureError: it takes more than `MOST_BYTES`.
    """
    width, height = image.size
    extent: tuple[float, float] = image.size  # in pixels that are decoded
    if side:
        factor = _reduction(image, side)
        draft = image.draft("RGB", (math.ceil(width / factor), math.ceil(height / factor)))
        if draft:  # a JPEG alone, at an eighth or more; its last pixels may lie half outside
            extent = draft[1][2:]
    _refuse_too_large(image, path, width, height)
    notes = _load(image, path)
    levels = grey_levels(image)
    if levels:
        notes.append(levels.note)
    rgb = _reduced_rgb(image, levels, _reduction(image, side) if side else 1, extent)
    orientation = orientation_of(image)
    if orientation in TURNS:
        rgb = rgb.transpose(TURNS[orientation])
    if orientation in TURNED_ASIDE:
        width, height = height, width
    return Picture(rgb, width, height, "; ".join(notes))


def decoding_bytes(image: ImageFile.ImageFile, pixels: int | None = None) -> int:
    """Say how much memory an opened picture takes while it is decoded.

    Args:
        image: not loaded.
        pixels: of the file, if the image is a draft of fewer.
    """
    pixel = DECODER_BYTES.get(str(image.format), MODE_BYTES.get(image.mode, RGB_BYTES))
    if deep_colours(image):
        pixel *= 2  # each of the two bytes may be decoded
    held = image.width * image.height * pixel
    if "progressive" in image.info:
        held += (pixels or image.width * image.height) * PROGRESSIVE_BYTES
    return held


def orientation_of(image: Image.Image) -> int:
    """Read the EXIF orientation of a loaded picture, 1 to 8; 1 if it has none that makes sense."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except EXIF_ERRORS:
        return UPRIGHT
    return orientation if isinstance(orientation, int) and orientation in TURNS else UPRIGHT


@cache
def _formats() -> list[str]:
    """Those formats that this Pillow has."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _reduction(image: Image.Image, side: int) -> int:
    """The whole number to divide a picture's sides by, to leave at least the side's square."""
    return max(math.isqrt(image.width * image.height) // side, 1)


def _refuse_too_large(image: ImageFile.ImageFile, path: Path, width: int, height: int) -> None:
    """Refuse a picture whose decoder would take more than the bound."""
    needed = decoding_bytes(image, width * height)
    if needed > MOST_BYTES:
        problem = (
            f"found one of {width:,} x {height:,} px, which takes {needed / 1e9:.1f} GB to decode; "
            f"at most {MOST_BYTES / 1e9:.1f} GB are taken, so make it smaller"
        )
        raise PictureError(path, problem)


def _load(image: ImageFile.ImageFile, path: Path) -> list[str]:
    """Decode the pixels; return notes for people."""
    colours = deep_colours(image)
    image.load()
    notes = []
    if colours:
        with Image.open(path, formats=[str(image.format)]) as low:
            notes.append(brighten(image, low, colours))
    # A photograph of format MPO has its own preview as second frame
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append("the first of several frames")
    return [note for note in notes if note]


def _rgb(image: Image.Image, levels: Levels | None) -> Image.Image:
    """Convert a strip of a picture to RGB, on white if it is transparent."""
    if levels:
        return as_8_bits(image, levels).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _reduced_rgb(
    image: Image.Image, levels: Levels | None, factor: int, extent: tuple[float, float]
) -> Image.Image:
    """Convert a loaded picture to RGB and reduce it, strip by strip: few bytes are held beside.

    The last row and column may stand for less than `factor` pixels. They are drawn out, as the
    picture would else be squeezed a little: that was most of the difference to the whole.
    """
    size = math.ceil(image.width / factor), math.ceil(image.height / factor)
    reduced = Image.new("RGB", size)
    for top, strip in strips(image, factor):
        reduced.paste(_rgb(strip, levels).reduce(factor), (0, top // factor))
    filled = extent[0] / factor, extent[1] / factor
    if filled == size:
        return reduced
    return reduced.resize(size, Image.Resampling.LANCZOS, (0, 0, *filled))

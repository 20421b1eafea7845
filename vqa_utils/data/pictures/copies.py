"""Keep a reduced copy of each picture that takes much memory to decode.

Such a picture is decoded once, and no two of them at a time on one machine. All runs of one
folder share the copies, which may be deleted at any time.
"""

import hashlib
from pathlib import Path

from filelock import FileLock
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngInfo

from vqa_utils.artifacts.files import write_atomically
from vqa_utils.artifacts.paths import picture_copies_dir
from vqa_utils.data.pictures.decoding import RGB_BYTES, Picture, decode, decoding_bytes, opened
from vqa_utils.data.pictures.files import PictureError, reading, stamp_of

LARGE_BYTES = 2**28  # 33 megapixels of PNG or JPEG, 13 of WebP; most cameras have 12 to 24
COPY_SIDE = 1024  # px; a copy has at least its square, which is enough for all presets
SPARE = 2  # a copy is this many times as large as it is shown, so that resizing it blurs nothing
LOCK, WIDTH, HEIGHT, NOTE = ".lock", "width", "height", "note"


def open_picture(path: Path, side: int) -> Picture:
    """Open a picture as the model sees it, or if it is large, its reduced copy.

    Args:
        path: the file.
        side: it is shown with at most this number's square in pixels.

    Raises:
        PictureError: the file cannot be read as a picture.
    """
    with reading(path) as file, opened(file, path) as image:
        if not is_large(image):
            return decode(image, path)
    return reduced_copy(path, side)


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height in px, before any EXIF turn. Reads the header only."""
    with reading(path) as file, opened(file, path) as image:
        return image.size


def is_large(image: ImageFile) -> bool:
    """Say if a picture takes so much memory, decoded and in RGB, that a reduced copy is kept."""
    return decoding_bytes(image) + image.width * image.height * RGB_BYTES > LARGE_BYTES


def reduced_copy(path: Path, side: int) -> Picture:
    """Return the kept copy of a large picture, which is made if it is not there or too small.

    Args:
        path: the file.
        side: as for `open_picture`.
    """
    copy = _copy_of(path)
    kept = _read_copy(copy, side)
    if kept is None:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(copy.parent / LOCK):
            kept = _read_copy(copy, side)  # another process may just have made it
            if kept is None:
                kept = _decode_reduced(path, side)
                _write_copy(copy, kept)
    return kept


def _copy_of(path: Path) -> Path:
    """The copy's file: named after the picture's place and stamp, so that it is never outdated."""
    parts = (str(path.resolve()), *map(str, stamp_of(path)))
    return picture_copies_dir() / f"{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}.png"


def _decode_reduced(path: Path, side: int) -> Picture:
    with reading(path) as file, opened(file, path) as image:
        return decode(image, path, max(COPY_SIDE, SPARE * side))


def _write_copy(copy: Path, picture: Picture) -> None:
    texts = PngInfo()
    for name in (WIDTH, HEIGHT, NOTE):
        texts.add_text(name, str(getattr(picture, name)))
    write_atomically(copy, lambda file: picture.image.save(file, "PNG", pnginfo=texts))


def _read_copy(copy: Path, side: int) -> Picture | None:
    """Read a copy; None if there is none, or it is torn, or too small."""
    try:
        with reading(copy) as file, opened(file, copy) as image:
            image.load()
            width, height = int(image.info[WIDTH]), int(image.info[HEIGHT])
            picture = Picture(image, width, height, image.info[NOTE])
    except PictureError:
        return None
    enough = min((SPARE * side) ** 2, width * height)
    return picture if picture.image.width * picture.image.height >= enough else None

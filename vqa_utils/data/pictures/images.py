"""Read image files once: content hash, size and perceptual hash of each, kept in images.csv."""

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.fft import dctn
from tqdm import tqdm

from vqa_utils.artifacts.files import TornFile, read_table, sha256, write_text
from vqa_utils.artifacts.places import portable

MAX_ASPECT_RATIO = 200  # qwen_vl_utils refuses more
HASH_DIGITS = 16
THUMBNAIL_PX = (
    64  # a JPEG is decoded no larger than it must be for this; a perceptual hash needs 32
)
GREY_SIDE, FREQUENCIES = 32, 8  # px, and the lowest ones a side: a perceptual hash has 8 * 8 bits
FILES_PER_TASK = 16  # one task per file, of all files at once, takes more memory than what is read
BAR_AFTER_SECONDS = 3  # shorter work, such as reading the demo's pictures, has no bar
Image.MAX_IMAGE_PIXELS = None  # the field's test set has a photograph of 123 million pixels
NO_IMAGE = (OSError, SyntaxError, ValueError)  # Pillow's errors for a torn file, or no image at all


class ImageFile(NamedTuple):
    """A row of images.csv, without its path."""

    bytes: int
    mtime_ns: int
    ctime_ns: int
    """Times of the last change of contents and of the file itself. A file of other bytes or another
    time is read anew; a copy keeps bytes and mtime of its source, but has its own ctime."""
    hash: str
    """SHA-256 of the contents, 16 hex digits; empty if the file cannot be read."""
    width: int
    height: int
    """px; 0 if the file is no image."""
    perceptual_hash: str
    """16 hex digits (see `perceptual_hash`); empty if the picture cannot be decoded."""
    problem: str
    """Empty if there is none."""


# completes "expected an image, {problem}" of _checks.WRONG_IMAGE
NO_FILE = ImageFile(0, 0, 0, "", 0, 0, "", "found no file")


def read_images(folder: Path, paths: Iterable[str], table: Path | None = None) -> pd.DataFrame:
    """Read and decode each image file once, whatever the number of rows that show it.

    Args:
        folder: the paths are relative to it; an absolute path needs none.
        table: the run's images.csv, if there is one. Its rows are trusted for files of the same
            bytes and times, so that only new and changed files are opened.

    Returns:
        One row per file with the fields of `ImageFile`, indexed by `path`.
    """
    different = list(dict.fromkeys(paths))
    known = _unchanged(folder, different, table)
    unread = [path for path in different if path not in known]
    read = _each_file(lambda path: _read(folder / path), unread, "reading images")
    rows = [known.get(path) or read[path] for path in different]
    return pd.DataFrame(rows, index=pd.Index(different, name="path"), columns=ImageFile._fields)


def keep_images(images: pd.DataFrame, table: Path) -> None:
    """Write the rows of `read_images` to the run's images.csv, unless it has the same ones."""
    # The paths of extra rows are absolute
    text = images.rename(index=portable).to_csv()
    if not table.exists() or table.read_text(encoding="utf-8") != text:
        write_text(table, text)


def image_hashes(folder: Path, paths: Iterable[str], table: Path | None = None) -> list[str]:
    """Hash each image file: copies of one picture under several names have equal hashes.

    Args:
        table: the run's images.csv, trusted as in `read_images`.

    Returns:
        SHA-256, 16 hex digits, in the order of `paths`.
    """
    paths = list(paths)
    different = list(dict.fromkeys(paths))
    known = _unchanged(folder, different, table)
    unread = [path for path in different if path not in known]
    read = _each_file(lambda path: sha256(folder / path)[:HASH_DIGITS], unread, "hashing images")
    hashes = {path: file.hash for path, file in known.items()} | read
    return [hashes[path] for path in paths]


def perceptual_hash(image: Image.Image) -> str:
    """Hash a picture to 64 bits, 16 hex digits: alike pictures differ in few bits.

    Size and format do not matter.

    A bit says if one of the 8 x 8 lowest frequencies of the grey picture's cosine transform is
    above their median (Zauner 2010, "Implementation and benchmarking of perceptual image hash
    functions"). The median leaves out the mean brightness.
    """
    grey = image.convert("L").resize((GREY_SIDE, GREY_SIDE), Image.Resampling.LANCZOS)
    lowest = dctn(np.asarray(grey, float))[:FREQUENCIES, :FREQUENCIES].ravel()  # [64]
    return np.packbits(lowest > np.median(lowest[1:])).tobytes().hex()


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, turned as its EXIF data says, on white if it is transparent."""
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):  # 16 bits of grey, which a plain conversion clips to white
        grey = np.asarray(turned).astype(np.uint32) >> 8
        turned = Image.fromarray(grey.astype(np.uint8))
    if turned.has_transparency_data:
        white = Image.new("RGBA", turned.size, "white")
        turned = Image.alpha_composite(white, turned.convert("RGBA"))
    return turned.convert("RGB")


def open_image(path: Path) -> Image.Image:
    """Open an image as the model sees it (see `upright_rgb`)."""
    with Image.open(path) as image:
        return upright_rgb(image)


def _unchanged(folder: Path, paths: list[str], table: Path | None) -> dict[str, ImageFile]:
    """The rows of images.csv, by path, for those files that have not changed since."""
    saved = _read_table(table)
    names = {path: portable(path) for path in paths}  # as `keep_images` writes them
    here = [path for path in paths if names[path] in saved]
    stamps = _each_file(lambda path: _stamp(folder / path), here, "looking at images")
    unchanged = {}
    for path in here:
        row = saved[names[path]]
        if (row.bytes, row.mtime_ns, row.ctime_ns) == stamps[path] and not row.problem:
            unchanged[path] = row
    return unchanged


def _read_table(table: Path | None) -> dict[str, ImageFile]:
    """The rows of images.csv by portable path; none of a torn file, or one of another version's columns."""
    if table is None or not table.exists():
        return {}
    texts = dict.fromkeys(("path", "hash", "perceptual_hash", "problem"), str)
    columns = ["path", *ImageFile._fields]
    try:
        frame = read_table(table, columns, dtype=texts, keep_default_na=False)
    except TornFile:
        return {}
    if list(frame) != columns:
        return {}
    return {path: ImageFile(*row) for path, *row in frame.itertuples(index=False)}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """A file's bytes, mtime_ns and ctime_ns; None if there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # no such file, or no such name: too long, or with a null byte
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: Path) -> ImageFile:
    """Read, hash and decode one file. A JPEG is decoded at a fraction of its size."""
    stamp = _stamp(path)  # before the contents: a change in between shows as another time later
    if stamp is None:
        return NO_FILE
    file = NO_FILE._replace(bytes=stamp[0], mtime_ns=stamp[1], ctime_ns=stamp[2], problem="")
    try:
        contents = path.read_bytes()
        file = file._replace(hash=hashlib.sha256(contents).hexdigest()[:HASH_DIGITS])
        with Image.open(io.BytesIO(contents)) as image:
            file = file._replace(width=image.width, height=image.height)
            # It changes image.size: after the size is noted, and before any pixel is decoded
            image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))
            file = file._replace(perceptual_hash=perceptual_hash(upright_rgb(image)))
    except UnidentifiedImageError:  # its words have the object's address
        return file._replace(problem=f"found {file.bytes:,} bytes of no image format")
    except NO_IMAGE as error:
        return file._replace(problem=f"found {error}")
    longer, shorter = max(file.width, file.height), min(file.width, file.height)
    if longer > MAX_ASPECT_RATIO * shorter:
        size = f"{file.width} x {file.height} px"
        problem = f"found one of {size}, longer than {MAX_ASPECT_RATIO} times its width"
        return file._replace(problem=problem)
    return file


def _each_file(work: Callable[[str], Any], paths: list[str], title: str) -> dict[str, Any]:
    """Do `work` on each path in threads: reading, hashing and decoding let go of Python's lock."""
    with ThreadPool(os.cpu_count()) as pool:
        results = pool.imap(work, paths, FILES_PER_TASK)
        # A bar in a terminal alone (disable=None): a notebook would keep it as an output, which
        # then depends on the machine's speed
        bar = tqdm(results, title, len(paths), leave=False, delay=BAR_AFTER_SECONDS, disable=None)
        return dict(zip(paths, bar, strict=True))

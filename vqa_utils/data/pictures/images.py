"""Read image files once: content hash, size and perceptual hash of each, kept in images.csv."""

import hashlib
import os
from collections.abc import Callable, Iterable
from io import BufferedReader
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from PIL.ImageFile import ImageFile as OpenImage
from scipy.fft import dctn
from tqdm import tqdm

from vqa_utils.artifacts.files import TornFile, read_table, write_text
from vqa_utils.artifacts.places import portable
from vqa_utils.data.pictures.copies import is_large, reduced_copy
from vqa_utils.data.pictures.decoding import Picture, decode, opened
from vqa_utils.data.pictures.files import PictureError, reading, stamp_if_any, stamp_of

MAX_ASPECT_RATIO = 200  # qwen_vl_utils refuses more
HASH_DIGITS = 16
THUMBNAIL_PX = (
    64  # a JPEG is decoded no larger than it must be for this; a perceptual hash needs 32
)
GREY_SIDE, FREQUENCIES = 32, 8  # px, and the lowest ones a side: a perceptual hash has 8 * 8 bits
FILES_PER_TASK = 16  # one task per file, of all files at once, takes more memory than what is read
BAR_AFTER_SECONDS = 3  # shorter work, such as reading the demo's pictures, has no bar
ONE_COLOUR = "one colour"


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
    note: str
    """What is odd about the picture, or how it was read; empty if there is nothing to say."""
    problem: str
    """Completes "expected an image, ..." (see `_checks`); empty if there is none."""


NOTHING_KNOWN = ImageFile(0, 0, 0, "", 0, 0, "", "", "")


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
    read = each_file(lambda path: _read(folder / path), unread, "reading images")
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
    read = each_file(lambda path: _hash(folder / path), unread, "hashing images")
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


def _unchanged(folder: Path, paths: list[str], table: Path | None) -> dict[str, ImageFile]:
    """The rows of images.csv, by path, for those files that have not changed since."""
    saved = _read_table(table)
    names = {path: portable(path) for path in paths}  # as `keep_images` writes them
    here = [path for path in paths if names[path] in saved]
    stamps = each_file(lambda path: stamp_if_any(folder / path), here, "looking at images")
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
    texts = dict.fromkeys(("path", "hash", "perceptual_hash", "note", "problem"), str)
    columns = ["path", *ImageFile._fields]
    try:
        frame = read_table(table, columns, dtype=texts, keep_default_na=False)
    except TornFile:
        return {}
    if list(frame) != columns:
        return {}
    return {path: ImageFile(*row) for path, *row in frame.itertuples(index=False)}


def _hash(path: Path) -> str:
    with reading(path) as contents:
        return _digest(contents)


def _digest(contents: BufferedReader) -> str:
    return hashlib.file_digest(contents, "sha256").hexdigest()[:HASH_DIGITS]


def _read(path: Path) -> ImageFile:
    """Read, hash and decode one file. A JPEG is decoded at a fraction of its size."""
    file = NOTHING_KNOWN
    try:
        # Before the contents: a change in between shows as another time later
        file = file._replace(**stamp_of(path)._asdict())
        with reading(path) as contents:
            file = file._replace(hash=_digest(contents))
            with opened(contents, path) as image:
                file = file._replace(width=image.width, height=image.height)
                _refuse_too_long(path, image)
                picture = None if is_large(image) else _thumbnail(image, path)
        picture = picture or reduced_copy(path, THUMBNAIL_PX)
    except PictureError as error:
        return file._replace(problem=error.problem)
    return file._replace(perceptual_hash=perceptual_hash(picture.image), note=_note(picture))


def _refuse_too_long(path: Path, image: Image.Image) -> None:
    longer, shorter = max(image.size), min(image.size)
    if longer > MAX_ASPECT_RATIO * shorter:
        size = f"{image.width} x {image.height} px"
        problem = f"found one of {size}, longer than {MAX_ASPECT_RATIO} times its width"
        raise PictureError(path, problem)


def _thumbnail(image: OpenImage, path: Path) -> Picture:
    """Decode an opened picture, a JPEG in a size that suffices to hash it."""
    # It changes image.size: after the size is noted, and before any pixel is decoded
    image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))
    return decode(image, path)


def _note(picture: Picture) -> str:
    """What to tell people about a picture."""
    is_plain = len(picture.image.getcolors(1) or []) == 1
    notes = [ONE_COLOUR, picture.note] if is_plain else [picture.note]
    return "; ".join(note for note in notes if note)


def each_file(work: Callable[[str], Any], paths: list[str], title: str) -> dict[str, Any]:
    """Do `work` on each path in threads: reading, hashing and decoding let go of Python's lock."""
    with ThreadPool(os.cpu_count()) as pool:
        results = pool.imap(work, paths, FILES_PER_TASK)
        # A bar in a terminal alone (disable=None): a notebook would keep it as an output, which
        # then depends on the machine's speed
        bar = tqdm(results, title, len(paths), leave=False, delay=BAR_AFTER_SECONDS, disable=None)
        return dict(zip(paths, bar, strict=True))

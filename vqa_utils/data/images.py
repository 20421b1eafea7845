"""Image files, side by side and each read once however many rows show it: contents' hashes, size, and what is wrong."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from scipy.fft import dctn
from tqdm import tqdm

from vqa_utils.artifacts.files import sha256

MAX_ASPECT_RATIO = 200  # qwen_vl_utils refuses more
HASH_DIGITS = 16
GREY_SIDE, FREQUENCIES = 32, 8  # px, and the lowest ones a side: a perceptual hash has 8 * 8 bits
FILES_A_TASK = 16  # a task a file, of all files at once, takes more memory than what is read
BAR_AFTER_SECONDS = 3  # what is done by then, such as the demo's pictures, has no bar
Image.MAX_IMAGE_PIXELS = None  # the field's test set has a photograph of 123 million pixels


def image_hashes(folder: Path, paths: Iterable[str]) -> list[str]:
    """SHA-256 of each image file, 16 hex digits: equal pictures under different names have equal hashes."""
    paths = list(paths)
    found = _each_file(lambda path: sha256(folder / path)[:HASH_DIGITS], paths, "hashing images")
    return [found[path] for path in paths]


def read_images(folder: Path, paths: Iterable[str]) -> pd.DataFrame:
    """Read and decode each image file (a JPEG, to a thumbnail's worth).

    Returns:
        A line a file, by its path: `hash` (as `image_hashes`), `perceptual_hash`, `width` and `height` in px, and `problem`,
        empty where there is none. A file that cannot be read has empty hashes or a size of 0.
    """
    found = _each_file(lambda path: _read(folder / path), paths, "reading images")
    columns = ["hash", "perceptual_hash", "width", "height", "problem"]
    return pd.DataFrame.from_dict(found, orient="index", columns=columns)


def perceptual_hash(image: Image.Image) -> str:
    """pHash, 64 bits as 16 hex digits: alike pictures differ in few bits, whatever their size, format and colours.

    A bit says whether one of the 8 x 8 lowest frequencies of the grey picture's cosine transform is above their median
    (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"; the mean brightness is no part of it).
    """
    grey = image.convert("L").resize((GREY_SIDE, GREY_SIDE), Image.Resampling.LANCZOS)
    lowest = dctn(np.asarray(grey, float))[:FREQUENCIES, :FREQUENCIES].ravel()
    return np.packbits(lowest > np.median(lowest[1:])).tobytes().hex()


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, turned the way its EXIF data says, on white where it is transparent."""
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):  # 16 bits of grey, which a plain conversion clips to white
        turned = Image.fromarray((np.asarray(turned).astype(np.uint32) >> 8).astype(np.uint8))
    if turned.has_transparency_data:
        turned = Image.alpha_composite(
            Image.new("RGBA", turned.size, "white"), turned.convert("RGBA")
        )
    return turned.convert("RGB")


def image_pixels(folder: Path, paths: Iterable[str]) -> np.ndarray:
    """Width times height of each image, int [N], from the files' headers alone; 0 where a file cannot be read."""
    paths = list(paths)
    found = _each_file(lambda path: _pixels(folder / path), paths, "measuring images")
    return np.array([found[path] for path in paths])


def _each_file(work: Callable[[str], Any], paths: Iterable[str], title: str) -> dict[str, Any]:
    """`work` on each different path, in threads: reading, hashing and decoding all let go of Python's lock."""
    different = list(dict.fromkeys(paths))
    with ThreadPool(os.cpu_count()) as pool:
        results = pool.imap(work, different, FILES_A_TASK)
        # disable=None: a bar in a terminal alone. A notebook would keep it as an output that depends on the machine's speed
        bar = tqdm(
            results, title, len(different), leave=False, delay=BAR_AFTER_SECONDS, disable=None
        )
        return dict(zip(different, bar, strict=True))


def _read(path: Path) -> tuple[str, str, int, int, str]:
    if not path.is_file():
        return "", "", 0, 0, "found no file"
    digest, alike, width, height = "", "", 0, 0
    try:
        contents = path.read_bytes()
        digest = hashlib.sha256(contents).hexdigest()[:HASH_DIGITS]
        with Image.open(io.BytesIO(contents)) as image:
            width, height = image.size
            image.draft("RGB", (64, 64))
            alike = perceptual_hash(upright_rgb(image))
    except (
        OSError,
        SyntaxError,
        ValueError,
    ) as error:  # what Pillow raises for a file that is no image, or a torn one
        return digest, alike, width, height, f"found {error}"
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        problem = (
            f"found one of {width} x {height} px, longer than {MAX_ASPECT_RATIO} times its width"
        )
        return digest, alike, width, height, problem
    return digest, alike, width, height, ""


def _pixels(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except (OSError, SyntaxError, ValueError):
        return 0


def open_image(path: Path) -> Image.Image:
    """The image as the model sees it, see `images.upright_rgb`."""
    with Image.open(path) as image:
        return upright_rgb(image)

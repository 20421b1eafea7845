"""Pictures and questions that stand in the data more than once, and the sizes of the pictures."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from PIL import Image

from vqa_utils.artifacts import sha256
from vqa_utils.data import Challenge


def image_hashes(folder: Path, paths: Iterable[str]) -> list[str]:
    """SHA-256 of each image file, 16 hex digits: equal pictures under different names have equal hashes."""
    with ThreadPoolExecutor() as pool:
        return [digest[:16] for digest in pool.map(lambda path: sha256(folder / path), paths)]


def duplicate_table(challenge: Challenge) -> pd.DataFrame:
    """How many rows share their picture, or their question, with another row.

    Returns:
        A line each for `pictures` and `questions`: `different` ones, `train rows` and `test rows` that share theirs
        with another row of the same file, and `test rows in train`.
    """
    train, test = challenge.train, challenge.test
    hashes = [pd.Series(image_hashes(challenge.folder, rows["path"])) for rows in (train, test)]
    lines = {}
    for name, (a, b) in {"pictures": hashes, "questions": (train["question"], test["question"])}.items():
        lines[name] = {
            "different": pd.concat([a, b]).nunique(),
            "train rows": int(a.duplicated(keep=False).sum()),
            "test rows": int(b.duplicated(keep=False).sum()),
            "test rows in train": int(b.isin(set(a)).sum()),
        }
    return pd.DataFrame(lines).T


def image_sizes(challenge: Challenge) -> pd.DataFrame:
    """`split`, `width` and `height` in px of each row's picture, read from the files' headers."""
    sizes = []
    for split, rows in (("train", challenge.train), ("test", challenge.test)):
        for path in rows["path"]:
            with Image.open(challenge.folder / path) as image:
                sizes.append((split, *image.size))
    return pd.DataFrame(sizes, columns=["split", "width", "height"])

"""Hash a run's data: changes with its CSVs or any picture."""

from pathlib import Path

import pandas as pd

from vqa_utils.artifacts.files import sha256
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.pictures.files import stamp_if_any
from vqa_utils.data.pictures.images import image_hashes


def data_hash(config: Config, images: Path | None = None) -> str:
    """Hash the contents of the CSVs and of all pictures, not their places or times.

    Args:
        config: names the data (see `challenge.load_challenge`).
        images: the run's images.csv, which has the hashes of pictures that have not changed since;
            the others, or without it all, are read.
    """
    challenge = load_challenge(config)
    folder = challenge.folder
    paths = [*challenge.train["path"], *challenge.test["path"]]
    # The paths of extra rows are absolute: they would say where the files are
    shown = [*paths, *challenge.extra["path"]]
    # A missing picture changes the hash; it is no error here
    there = [path for path in shown if stamp_if_any(folder / path)]
    contents = [sha256(file) for file in challenge.files]
    parts = pd.Series([*contents, *paths, *image_hashes(folder, there, images)])
    # Each part is hashed with its position, so that the sum (modulo 2**64) depends on the order
    return str(pd.util.hash_pandas_object(parts).sum())

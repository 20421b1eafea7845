"""One number that changes with a challenge's CSVs or with any picture."""

import pandas as pd

from vqa_utils.artifacts.files import sha256
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.images import image_hashes


def data_hash(config: Config) -> str:
    """Changes with the CSVs and with the contents of any picture, not with where they lie or when they were copied."""
    challenge = load_challenge(config)
    paths = pd.concat([challenge.train["path"], challenge.test["path"]])
    extra = challenge.extra["path"]
    pictures = image_hashes(
        challenge.folder, [path for path in [*paths, *extra] if (challenge.folder / path).is_file()]
    )
    return str(
        pd.util.hash_pandas_object(
            pd.Series([*map(sha256, challenge.files), *paths, *pictures])
        ).sum()
    )

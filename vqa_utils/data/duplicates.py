"""Pictures and questions that stand in the data more than once, and the sizes of the pictures."""

import pandas as pd

from vqa_utils.data.challenge import Challenge


def duplicate_table(challenge: Challenge) -> pd.DataFrame:
    """How many rows share their picture, or their question, with another row.

    Args:
        challenge: loaded with its images checked.

    Returns:
        A line each for `pictures` and `questions`: `different` ones, `train rows` and `test rows` that share theirs
        with another row of the same file, and `test rows in train`.
    """
    train, test = challenge.train, challenge.test
    hashes = [rows["path"].map(challenge.images["hash"]) for rows in (train, test)]
    lines = {}
    for name, (a, b) in {
        "pictures": hashes,
        "questions": (train["question"], test["question"]),
    }.items():
        lines[name] = {
            "different": pd.concat([a, b]).nunique(),
            "train rows": int(a.duplicated(keep=False).sum()),
            "test rows": int(b.duplicated(keep=False).sum()),
            "test rows in train": int(b.isin(set(a)).sum()),
        }
    return pd.DataFrame(lines).T


def image_sizes(challenge: Challenge) -> pd.DataFrame:
    """`split`, `width` and `height` in px of each row's picture, of a challenge that was loaded with its images checked."""
    sizes = {
        split: challenge.images.loc[rows["path"], ["width", "height"]]
        for split, rows in (("train", challenge.train), ("test", challenge.test))
    }
    return pd.concat(sizes, names=["split", "path"]).reset_index("split").reset_index(drop=True)

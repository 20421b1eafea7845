"""Count pictures and questions that occur more than once; list picture sizes."""

import pandas as pd

from vqa_utils.data.challenge import Challenge


def duplicate_table(challenge: Challenge) -> pd.DataFrame:
    """Count the rows that share their picture, or their question, with another row.

    Args:
        challenge: loaded with its images checked.

    Returns:
        One row each for `pictures` and `questions`: `different` ones, `train rows` and `test rows`
        that share theirs with another row of the same file, and `test rows in train`.
    """
    train, test = challenge.train, challenge.test
    pictures = _repeats(challenge.images_of(train)["hash"], challenge.images_of(test)["hash"])
    questions = _repeats(train["question"], test["question"])
    return pd.DataFrame({"pictures": pictures, "questions": questions}).T


def _repeats(train: pd.Series, test: pd.Series) -> dict[str, int]:
    return {
        "different": pd.concat([train, test]).nunique(),
        "train rows": int(train.duplicated(keep=False).sum()),
        "test rows": int(test.duplicated(keep=False).sum()),
        "test rows in train": int(test.isin(train).sum()),
    }


def image_sizes(challenge: Challenge) -> pd.DataFrame:
    """List `split`, `width` and `height` in px of each row's picture, train before test.

    Args:
        challenge: loaded with its images checked.
    """
    train = challenge.images_of(challenge.train)[["width", "height"]]
    test = challenge.images_of(challenge.test)[["width", "height"]]
    sizes = [train.assign(split="train"), test.assign(split="test")]
    return pd.concat(sizes, ignore_index=True)[["split", "width", "height"]]

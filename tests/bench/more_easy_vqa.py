"""What easy-VQA has beside the demo's challenge: more training rows, and the test rows' answers."""

from pathlib import Path

import pandas as pd

from vqa_utils.artifacts.files import write_csv
from vqa_utils.data.known.easy_vqa import ROWS, copy_images, sample_rows


def write_extra(folder: Path, count: int = ROWS["train"]) -> Path:
    """Write more of easy-VQA's training questions, extra.csv and its images, for `--extra-train`.

    They are drawn anew from all, so that some show or ask the same as the challenge's own rows.

    Returns:
        The CSV.
    """
    extra = sample_rows("extra", count)
    copy_images(extra, folder)
    write_csv(folder / "extra.csv", extra.rows)
    return folder / "extra.csv"


def known_test_answers() -> pd.DataFrame:
    """`id` and `answer` of the test rows: test.csv lacks the answers, and easy-VQA has them."""
    return sample_rows("test", ROWS["test"]).rows[["id", "answer"]]

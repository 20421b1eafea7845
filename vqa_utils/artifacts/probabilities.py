"""Check probs_*.csv against their contract, when they are written and when they are read.

id, a, b, c, d          each id once; a to d are probabilities and sum to 1 in each row
id, order, a, b, c, d   probs_*_orders.csv: the same for each order of the options
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from vqa_utils.artifacts.files import ArtifactError, read_table, write_csv
from vqa_utils.metrics import option_matrix
from vqa_utils.prompts import LETTERS

PROBABILITY_COLUMNS = ["id", *LETTERS]
BASE_TEST = "zero_shot_test"  # the test rows by the base without an adapter
SECOND_LOOK = "second_look"  # ends the name of a file with the rows that are scored again
ORDER_COLUMNS = ["id", "order", *LETTERS]
SUM_TOLERANCE = 1e-4  # of a row's probabilities, which went through text


def write_probabilities(path: Path, frame: pd.DataFrame) -> None:
    """Write option probabilities (`id`, `a` to `d`).

    Raises:
        ArtifactError: a row is no distribution.
    """
    _check_probabilities(path, frame)
    write_csv(path, frame[PROBABILITY_COLUMNS])


def read_probabilities(path: Path, ids: Iterable[str] | None = None) -> pd.DataFrame:
    """Read option probabilities with exactly the rows `ids`, in that order; without `ids`, all.

    Raises:
        ArtifactError: the file is missing, has other columns or ids, or a row with another sum
            than 1.
    """
    return _with_rows(path, _read(path), ids)


def write_orders(path: Path, orders: pd.DataFrame) -> None:
    """Write the rows' probabilities by option order (`id`, `order`, `a` to `d`).

    One order alone leaves no file, nor an old one. `order` says by how many places the options were
    turned; `a` to `d` are the row's own options in any order.
    """
    if orders["order"].nunique() > 1:
        write_csv(path, orders[ORDER_COLUMNS])
    else:
        path.unlink(missing_ok=True)


def read_orders(path: Path, ids: Iterable[str]) -> pd.DataFrame:
    """Invert `write_orders`: order after order, each with exactly the rows `ids`.

    Raises:
        ArtifactError: the file is missing or has other columns, or an order breaks the contract of
            `read_probabilities`.
    """
    ids = list(ids)
    orders = _read(path)
    if "order" not in orders:
        raise ArtifactError(
            f"{path}: expected the column 'order' too, found {list(orders)}; "
            "run notebook 04_infer again"
        )
    parts = [_with_rows(path, part, ids) for _, part in orders.groupby("order")]
    return pd.concat(parts, ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise ArtifactError(
            f"{path}: expected option probabilities, found no file; run notebook 04_infer first"
        )
    # ids stay text, "01" and "None" included; only an empty probability is a missing one
    missing = {letter: [""] for letter in LETTERS}
    mend = "run notebook 04_infer again"
    types = {"id": str}
    return read_table(path, mend=mend, dtype=types, keep_default_na=False, na_values=missing)


def _with_rows(path: Path, frame: pd.DataFrame, ids: Iterable[str] | None) -> pd.DataFrame:
    """Check a frame, and put its rows in the order of `ids`."""
    _check_probabilities(path, frame)
    if ids is None:
        return frame
    ids = list(ids)
    found = set(frame["id"])
    missing = [row_id for row_id in ids if row_id not in found]
    unknown = sorted(found - set(ids))
    if missing or unknown:
        raise ArtifactError(
            f"{path}: expected {len(ids)} ids, found {len(frame)}: "
            f"lacks {len(missing)} (such as {missing[:3]}), "
            f"has {len(unknown)} unknown (such as {unknown[:3]}); run notebook 04_infer again"
        )
    return frame.set_index("id").loc[ids].reset_index()


def _check_probabilities(path: Path, frame: pd.DataFrame) -> None:
    absent = [column for column in PROBABILITY_COLUMNS if column not in frame]
    if absent:
        raise ArtifactError(f"{path}: expected columns {PROBABILITY_COLUMNS}, found {list(frame)}")
    probs = option_matrix(frame)  # [N, 4]
    sums_to_one = np.abs(probs.sum(axis=1) - 1) <= SUM_TOLERANCE  # False of NaN
    # Not below 0, with a sum of 1: so none is above 1 either
    is_distribution = sums_to_one & (probs >= 0).all(axis=1)
    wrong = list(frame["id"][~is_distribution])
    if wrong:
        raise ArtifactError(
            f"{path}: expected rows that sum to 1, found {len(wrong)} others, such as {wrong[:3]}"
        )
    twice = list(frame["id"][frame["id"].duplicated()])
    if twice:
        raise ArtifactError(f"{path}: expected each id once, found again {twice[:3]}")

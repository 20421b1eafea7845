"""The contract of probs_*.csv: option probabilities that are checked when they are written and when they are read."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from vqa_utils.artifacts.files import ArtifactError, write_csv

PROBABILITY_COLUMNS = ["id", "a", "b", "c", "d"]


def write_probabilities(path: Path, frame: pd.DataFrame) -> None:
    """Write option probabilities (`id`, `a` to `d`); a row that is not a distribution is an error."""
    _check_probabilities(path, frame)
    write_csv(path, frame[PROBABILITY_COLUMNS])


def read_probabilities(path: Path, ids: Iterable[str] | None = None) -> pd.DataFrame:
    """Option probabilities with exactly the rows `ids`, in that order; without `ids`, whatever rows there are.

    Raises:
        ArtifactError: the file is missing, has other columns or ids, or a row that does not sum to 1.
    """
    return _with_rows(path, _read_probabilities(path), ids)


def write_orders(path: Path, orders: pd.DataFrame) -> None:
    """Write the rows' probabilities by option order (`id`, `order`, `a` to `d`).

    One order alone leaves no file, nor an old one. `order` says by how many places the options were
    turned; `a` to `d` are the row's own options in any order.
    """
    if orders["order"].nunique() > 1:
        write_csv(path, orders[["id", "order", *PROBABILITY_COLUMNS[1:]]])
    else:
        path.unlink(missing_ok=True)


def read_orders(path: Path, ids: Iterable[str]) -> pd.DataFrame:
    """What `write_orders` wrote, order after order, each with exactly the rows `ids`.

    Raises:
        ArtifactError: the file is missing or has other columns, or an order is not what `read_probabilities` expects.
    """
    ids, orders = list(ids), _read_probabilities(path)
    if "order" not in orders:
        raise ArtifactError(
            f"{path}: expected the column 'order' too, found {list(orders)}; run notebook 04_infer again"
        )
    parts = [_with_rows(path, part, ids) for _, part in orders.groupby("order")]
    return pd.concat(parts, ignore_index=True)


def _read_probabilities(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise ArtifactError(
            f"{path}: expected option probabilities, found no file; run notebook 04_infer first"
        )
    return pd.read_csv(
        path, dtype={"id": str}, keep_default_na=False, na_values={c: [""] for c in "abcd"}
    )


def _with_rows(path: Path, frame: pd.DataFrame, ids: Iterable[str] | None) -> pd.DataFrame:
    """The checked frame with exactly the rows `ids`, in that order."""
    _check_probabilities(path, frame)
    if ids is None:
        return frame
    ids, found = list(ids), set(frame["id"])
    missing, extra = [i for i in ids if i not in found], sorted(found - set(ids))
    if missing or extra:
        raise ArtifactError(
            f"{path}: expected {len(ids)} ids, found {len(frame)}: lacks {len(missing)} (such as {missing[:3]}), "
            f"has {len(extra)} unknown (such as {extra[:3]}); run notebook 04_infer again"
        )
    return frame.set_index("id").loc[ids].reset_index()


def _check_probabilities(path: Path, frame: pd.DataFrame) -> None:
    absent = [column for column in PROBABILITY_COLUMNS if column not in frame]
    if absent:
        raise ArtifactError(f"{path}: expected columns {PROBABILITY_COLUMNS}, found {list(frame)}")
    values = frame[PROBABILITY_COLUMNS[1:]].astype(float)
    wrong = frame["id"][
        values.isna().any(axis=1)
        | ((values.sum(axis=1) - 1).abs() > 1e-4)
        | (values < 0).any(axis=1)
    ]
    if len(wrong):
        raise ArtifactError(
            f"{path}: expected rows that sum to 1, found {len(wrong)} others, such as {list(wrong[:3])}"
        )
    twice = frame["id"][frame["id"].duplicated()]
    if len(twice):
        raise ArtifactError(f"{path}: expected each id once, found again {list(twice[:3])}")

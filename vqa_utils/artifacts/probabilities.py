"""The contract of probs_*.csv: option probabilities that are checked when they are written and when they are read."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from vqa_utils.artifacts.files import ArtifactError, write_csv

PROBABILITY_COLUMNS = ["id", "a", "b", "c", "d"]


VIEW_COLUMNS = ["order", "rotation"]  # by how many places the options were turned, and by how many degrees the picture


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


def write_views(path: Path, views: pd.DataFrame) -> None:
    """Write what each view of the rows said (`id`, `order`, `rotation`, `a` to `d`); one view alone leaves no file, nor an old one."""
    if len(views[VIEW_COLUMNS].drop_duplicates()) > 1:
        write_csv(path, views[["id", *VIEW_COLUMNS, *PROBABILITY_COLUMNS[1:]]])
    else:
        path.unlink(missing_ok=True)


def read_views(path: Path, ids: Iterable[str]) -> pd.DataFrame:
    """What `write_views` wrote, one view after the other, each with exactly the rows `ids`, in that order.

    Raises:
        ArtifactError: the file is missing or has other columns, or a view is not what `read_probabilities` expects.
    """
    ids, views = list(ids), _read_probabilities(path)
    if not set(VIEW_COLUMNS) <= set(views):
        raise ArtifactError(
            f"{path}: expected the columns {VIEW_COLUMNS} too, found {list(views)}; run notebook 04_infer again"
        )
    parts = [_with_rows(path, part, ids) for _, part in views.groupby(VIEW_COLUMNS)]
    return pd.concat(parts, ignore_index=True)


def _read_probabilities(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise ArtifactError(f"{path}: expected option probabilities, found no file; run notebook 04_infer first")
    return pd.read_csv(path, dtype={"id": str}, keep_default_na=False, na_values={c: [""] for c in "abcd"})


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
    wrong = frame["id"][values.isna().any(axis=1) | ((values.sum(axis=1) - 1).abs() > 1e-4) | (values < 0).any(axis=1)]
    if len(wrong):
        raise ArtifactError(f"{path}: expected rows that sum to 1, found {len(wrong)} others, such as {list(wrong[:3])}")
    twice = frame["id"][frame["id"].duplicated()]
    if len(twice):
        raise ArtifactError(f"{path}: expected each id once, found again {list(twice[:3])}")

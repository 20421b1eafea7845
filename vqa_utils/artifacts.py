"""Files between stages: written whole or not at all, checked when they are read, with their origin recorded."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from vqa_utils.errors import VqaError
from vqa_utils.paths import ROOT

PROBABILITY_COLUMNS = ["id", "a", "b", "c", "d"]
VIEW_COLUMNS = ["order", "rotation"]  # by how many places the options were turned, and by how many degrees the picture
PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "bitsandbytes", "qwen-vl-utils",
    "papermill", "jupytext", "pandas", "scikit-learn",
)  # fmt: skip


class ArtifactError(VqaError):
    """A file between two stages is missing or is not what its reader expects."""


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a temporary file beside `path`, then move it there: no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with every script readable."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a CSV file atomically, without an index."""
    write_atomically(path, lambda temporary: frame.to_csv(temporary, index=False))


def sha256(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of all files below a folder, as hex."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    names = [f"{file.relative_to(path)} {sha256(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def hashes(paths: Iterable[Path], base: Path) -> dict[str, str]:
    """SHA-256 by path (relative to `base` where it lies below); a missing file has the value "missing"."""
    return {
        str(path.relative_to(base) if path.is_relative_to(base) else path): sha256(path) if path.exists() else "missing"
        for path in paths
    }


def ids_hash(ids: Iterable[str]) -> str:
    """16 hex digits that name a list of rows."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


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


def provenance() -> dict[str, Any]:
    """Where a result comes from: package versions, Python, machine and the git commit (None outside a checkout)."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "git_commit": _git("rev-parse", "HEAD") or None,
        "git_changed": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "packages": versions,
    }


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    found = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return found.stdout.strip()

"""Find data, a model and an earlier run among the inputs of a place, as its mounts differ."""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.errors import VqaError
from vqa_utils.language import said

DEPTH = 6  # folders below an input: a drive has many
DATA = ("train.csv", "test.csv")
RUN = ("config.json", "provenance.json")
NOT_LOOKED_INTO = ("runs", "__pycache__")  # for data and models: runs have their own


class LaunchError(VqaError):
    """A run cannot be started here."""


@dataclass(frozen=True)
class Place:
    """Where a launcher's notebook may be."""

    name: str
    inputs: tuple[Path, ...]
    """Searched for data, a model, and an earlier run."""
    output: Path
    """Keeps `runs/` and submission.csv."""


KAGGLE = Place("Kaggle", (Path("/kaggle/input"),), Path("/kaggle/working"))
DRIVE = Path("/content/drive/MyDrive")  # is kept when Colab's machine goes
COLAB = Place("Colab", (DRIVE, Path("/content")), DRIVE if DRIVE.is_dir() else Path("/content"))


def this_place() -> Place:
    """Return the place of this notebook; in no place that is known, it is the working folder."""
    for place in (KAGGLE, COLAB):
        if place.inputs[-1].is_dir():
            return place
    return Place("this machine", (Path.cwd(),), Path.cwd())


def roomiest_disk(place: Place) -> Path:
    """Return the folder with most room for what may be lost with the machine.

    What a run writes to the output counts there: Kaggle keeps 20 GB of it.
    """
    disks = [Path("/kaggle/tmp"), Path(tempfile.gettempdir()), place.output]
    there = [disk for disk in disks if disk.is_dir()]
    return max(there, key=lambda disk: shutil.disk_usage(disk).free)


def find_data(place: Place) -> Path | None:
    """Find the one challenge, None without any; a zip with one is unpacked on a temporary disk.

    Raises:
        LaunchError: there is more than one.
    """
    found = list(_folders_with(DATA, place.inputs))
    if not found:
        for zipped in _zips_with(DATA[0], place.inputs):
            unpacked = roomiest_disk(place) / "vqa-data" / zipped.stem
            zipfile.ZipFile(zipped).extractall(unpacked)
            found += _folders_with(DATA, [unpacked])
    if len(found) > 1:
        raise LaunchError(
            said(
                'expected one folder with {files}, found {found}; name it in ARGUMENTS: ["--data", '
                '"FOLDER"]',
                files=", ".join(DATA),
                found=", ".join(map(str, found)),
            )
        )
    return found[0] if found else None


def find_model(place: Place, expected: dict[str, Any]) -> Path | None:
    """Find a model with weights among the inputs; None without it.

    Args:
        place: with the inputs.
        expected: a config.json of the same sizes.

    Raises:
        LaunchError: there is more than one.
    """
    found = []
    for folder in _folders_with(["config.json"], place.inputs):
        has_weights = any(folder.glob("*.safetensors"))
        if has_weights and _sizes(_content(folder / "config.json")) == _sizes(expected):
            found.append(folder)
    if len(found) > 1:
        raise LaunchError(
            said(
                "expected one model of these sizes, found {found}; name it in ARGUMENTS: "
                '["--model", "FOLDER"]',
                found=", ".join(map(str, found)),
            )
        )
    return found[0] if found else None


def find_run(place: Place) -> Path | None:
    """Find the run among the inputs whose last command started last."""
    runs = [
        folder
        for folder in _folders_with(RUN, place.inputs, skipped=("predict", "replaced"))
        if folder.name != "latest"  # where a copy has made a folder of the link
    ]
    return max(runs, key=lambda run: _content(run / RUN[1]).get("started", ""), default=None)


def _folders_with(
    names: Collection[str], roots: Sequence[Path], skipped: Collection[str] = NOT_LOOKED_INTO
) -> Iterator[Path]:
    """Walk through folders, but for hidden and skipped ones, to those that have all these files."""
    seen: set[Path] = set()
    for root in roots:
        for folder, below, files in os.walk(root):
            path = Path(folder)
            is_deep = len(path.relative_to(root).parts) >= DEPTH
            below[:] = [] if is_deep else sorted(set(below) - set(skipped))
            below[:] = [name for name in below if not name.startswith(".")]
            is_code = path.resolve().is_relative_to(ROOT)
            if set(names) <= set(files) and not is_code and path.resolve() not in seen:
                seen.add(path.resolve())  # one root may lie below another
                yield path


def _zips_with(name: str, roots: Sequence[Path]) -> Iterator[Path]:
    for root in roots:
        for zipped in sorted(root.glob("*.zip")):
            with zipfile.ZipFile(zipped) as archive:
                if any(Path(member).name == name for member in archive.namelist()):
                    yield zipped


def _content(file: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one for anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _sizes(config: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells one model's config.json from another's."""
    text = config.get("text_config", config)
    names = ("hidden_size", "num_hidden_layers", "num_experts", "vocab_size")
    return (config.get("model_type"), *(text.get(name) for name in names))

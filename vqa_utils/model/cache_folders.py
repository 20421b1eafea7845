"""Find disks for what is kept between folds and runs. Free of torch.

These are quantised weights (`_quantized_copy`) and pictures' features (`features`): each a folder
whose name changes with all that its contents depend on.
"""

import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vqa_utils.config import Config
from vqa_utils.setting_types import AUTO

KAGGLE_WORKING = Path("/kaggle/working")
TEMPORARY = (Path("/kaggle/tmp"), Path(tempfile.gettempdir()))  # Kaggle clears it, and has room
FOLDER = "vqa_nf4"
ROOM = 1.1  # of the folder's size, that has to be free


def cache_folder(
    config: Config, name: str, size: int, is_there: Callable[[Path], bool]
) -> Path | None:
    """Find a place for the folder `name` of `size` bytes, made or not; None where none is kept.

    It is in `cache_dir`, or for "auto" on the first disk that has it or has room for it. On
    Kaggle, only temporary disks count: a submission needs some of the 20 GB of /kaggle/working.

    Args:
        config: its `cache_dir` counts.
        name: of the folder.
        size: bytes, once it is complete.
        is_there: tells whether a folder can be used as it is.
    """
    if config.cache_dir == "":
        return None
    if config.cache_dir != AUTO:
        return Path(config.cache_dir).expanduser() / name
    folders = [disk / FOLDER / name for disk in _disks()]
    for folder in folders:
        if is_there(folder):
            return folder
    return next((folder for folder in folders if _free(folder) > ROOM * size), None)


def has_room(config: Config, size: int, pattern: str) -> bool:
    """Tell whether a disk has room for a folder of `size` bytes.

    Args:
        config: its `cache_dir` counts.
        size: bytes.
        pattern: of the names of folders that may be the one, so that their bytes count as room.
    """
    if config.cache_dir == "":
        return False
    places = [Path(config.cache_dir).expanduser()]
    if config.cache_dir == AUTO:
        places = [disk / FOLDER for disk in _disks()]
    for place in places:
        there = [file.stat().st_size for file in place.glob(f"{pattern}/*")]
        if _free(place) + sum(there) > ROOM * size:
            return True
    return False


def source_key(source: Path, settings: Sequence[Any], libraries: Sequence[str]) -> str:
    """Return 16 hex digits that change with a checkpoint's files, these settings, and libraries.

    Args:
        source: the checkpoint's folder; in the hub's cache, its name is a commit, which stands for
            its files.
        settings: in JSON's types.
        libraries: packages, whose versions count.
    """
    files: list[str | tuple[str, int, int]] = [source.name]
    is_commit = source.parent.name == "snapshots"
    if not is_commit:
        for file in sorted(source.glob("*.safetensors")):
            # Size and time stand for the content: hashing it would read tens of GB
            files.append((file.name, file.stat().st_size, file.stat().st_mtime_ns))
    versions = [importlib.metadata.version(name) for name in libraries]
    model = (source / "config.json").read_text(encoding="utf-8")
    parts = json.dumps([files, settings, versions, model])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _free(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not be there."""
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _disks() -> list[Path]:
    """List the folders that may be used, the best first."""
    folders = list(TEMPORARY)
    if not KAGGLE_WORKING.exists():
        folders.insert(0, Path.home() / ".cache")
    # Off Kaggle, _disk(KAGGLE_WORKING) is None, and no folder is left out
    return [
        folder for folder in folders if folder.is_dir() and _disk(folder) != _disk(KAGGLE_WORKING)
    ]


def _disk(path: Path) -> int | None:
    """Return the number of the disk that a path is on."""
    return path.stat().st_dev if path.exists() else None

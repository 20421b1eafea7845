"""Keep quantised weights between folds, and tell whether a kept copy can be trusted. Free of torch.

A copy is a folder of safetensors in transformers' format with a manifest that is written last. Its
name has a hash of all that it depends on, so another source, setting or library version makes
another folder.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqa_utils.artifacts.manifest import tear, write_manifest
from vqa_utils.config import Config

FORMAT = 1  # of the copies; to be raised when what is saved changes
LIBRARIES = ("bitsandbytes", "transformers")  # that decide how weights are packed and named
EDGE = 2**20  # bytes at each end of a file that the manifest's hash covers
KAGGLE_WORKING = Path("/kaggle/working")
TEMPORARY = (Path("/kaggle/tmp"), Path(tempfile.gettempdir()))  # Kaggle clears it, and has room
FOLDER = "vqa_nf4"
ROOM = 1.1  # of the copy's size, that has to be free
WORTH_KEEPING = 10**9  # bytes; a smaller model is read in seconds


def copy_folder(config: Config, name: str, size: int) -> Path | None:
    """Find a place for the copy `name` of `size` bytes, made or not; None where none is kept.

    It is in `cache_dir`, or for "auto" on the first disk that has it or has room for it. On
    Kaggle, only temporary disks count: a submission needs some of the 20 GB of /kaggle/working.
    """
    if config.cache_dir == "":
        return None
    if config.cache_dir != "auto":
        return Path(config.cache_dir).expanduser() / name
    if size < WORTH_KEEPING:
        return None
    disks = _disks()
    for disk in disks:
        if is_whole(disk / FOLDER / name):
            return disk / FOLDER / name
    for disk in disks:
        if shutil.disk_usage(disk).free > ROOM * size:
            return disk / FOLDER / name
    return None


def _disks() -> list[Path]:
    """List the folders that copies may go to, the best first."""
    folders = list(TEMPORARY)
    if not KAGGLE_WORKING.exists():
        folders.insert(0, Path.home() / ".cache")
    # Off Kaggle, _disk(KAGGLE_WORKING) is None, and no folder is left out
    return [
        folder for folder in folders if folder.is_dir() and _disk(folder) != _disk(KAGGLE_WORKING)
    ]


def cache_key(config: Config, source: Path, dtype: str) -> str:
    """Return 16 hex digits that change with the source's files, the quantisation and the libraries.

    Args:
        config: the settings.
        source: the checkpoint's folder; in the hub's cache, its name is a commit, which stands for
            its files.
        dtype: of what is not quantised.
    """
    files: list[str | tuple[str, int, int]] = [source.name]
    is_commit = source.parent.name == "snapshots"
    if not is_commit:
        for file in sorted(source.glob("*.safetensors")):
            # Size and time stand for the content: hashing it would read tens of GB
            files.append((file.name, file.stat().st_size, file.stat().st_mtime_ns))
    settings = [config.quantization, config.use_double_quant, dtype, FORMAT]
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    model = (source / "config.json").read_text(encoding="utf-8")
    parts = json.dumps([files, settings, versions, model])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def is_whole(folder: Path) -> bool:
    """Tell whether a copy has its manifest, and every file in it is as it was written."""
    return not tear(folder, _print)


@contextmanager
def new_copy(folder: Path) -> Iterator[Path]:
    """Give a folder to write into; complete, it becomes `folder`; a failure leaves nothing."""
    # Named by process, as two folds may write at once; beside `folder`, so a rename moves it
    draft = folder.with_name(f"{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        yield draft
        write_manifest(draft, _print)
        if not is_whole(folder):  # a fold beside this one may have been faster
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _print(file: Path) -> str:
    """Return a file's size and the hash of both ends.

    A torn or sparse file shows, and 17 GB need not be read twice.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        edges = stream.read(EDGE)
        stream.seek(max(0, size - EDGE))
        edges += stream.read(EDGE)
    return f"{size} {hashlib.sha256(edges).hexdigest()[:16]}"


def _disk(path: Path) -> int | None:
    """Return the number of the disk that a path is on."""
    return path.stat().st_dev if path.exists() else None

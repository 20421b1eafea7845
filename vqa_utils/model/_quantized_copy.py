"""Where quantised weights are kept between folds, and whether a kept copy can be trusted. Free of torch.

A copy is a folder of safetensors in transformers' format with a manifest that is written last. Its name is a hash of all
that it depends on, so another source, setting or library version is another folder.
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

from vqa_utils.artifacts.files import read_json, write_json
from vqa_utils.config import Config

MANIFEST = "manifest.json"
FORMAT = 1  # of the copies; to be raised when what is saved changes
LIBRARIES = ("bitsandbytes", "transformers")
EDGE = (
    2**20
)  # bytes at both ends of a file that the manifest's hash covers; the middle is left to the file's size
KAGGLE_WORKING = Path("/kaggle/working")
TEMPORARY = (
    Path("/kaggle/tmp"),
    Path(tempfile.gettempdir()),
)  # what Kaggle clears, and has more room on
FOLDER = "vqa_nf4"
ROOM = 1.1  # of the copy's size, that has to be free
WORTH_KEEPING = 10**9  # bytes; a smaller model is read in seconds


def copy_folder(config: Config, name: str, size: int) -> Path | None:
    """Where the copy `name` of `size` bytes lies, or may be made; None where none is kept.

    In `cache_dir`, or for "auto" on the first disk that has it or has room for it. On Kaggle, only temporary disks count:
    /kaggle/working has 20 GB, and a submission needs some of them.
    """
    if config.cache_dir != "auto":
        return Path(config.cache_dir).expanduser() / name if config.cache_dir else None
    if size < WORTH_KEEPING:
        return None
    at_home = [] if KAGGLE_WORKING.exists() else [Path.home() / ".cache"]
    disks = [
        disk
        for disk in (*at_home, *TEMPORARY)
        if disk.is_dir() and _disk(disk) != _disk(KAGGLE_WORKING)
    ]
    made = [disk for disk in disks if is_whole(disk / FOLDER / name)]
    roomy = [disk for disk in disks if shutil.disk_usage(disk).free > ROOM * size]
    return next((disk / FOLDER / name for disk in (*made, *roomy)), None)


def cache_key(config: Config, source: Path, dtype: str) -> str:
    """16 hex digits that change with the source's files, with how they are quantised, and with the libraries.

    Args:
        source: the folder of the checkpoint; in the hub's cache, the commit that names it stands for its files.
        dtype: of what is not quantised.
    """
    shards = [] if source.parent.name == "snapshots" else sorted(source.glob("*.safetensors"))
    files = [
        source.name,
        *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in shards),
    ]
    settings = [config.quantization, config.use_double_quant, dtype, FORMAT]
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    model = (source / "config.json").read_text(encoding="utf-8")
    return hashlib.sha256(json.dumps([files, settings, versions, model]).encode()).hexdigest()[:16]


def is_whole(folder: Path) -> bool:
    """Whether a copy has its manifest, and every file in it is as it was written."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        return False
    return all(
        (folder / name).is_file() and _print(folder / name) == known
        for name, known in read_json(manifest).items()
    )


@contextmanager
def new_copy(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` once it is whole; what fails leaves nothing behind."""
    draft = folder.with_name(f"{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        yield draft
        write_json(draft / MANIFEST, {file.name: _print(file) for file in sorted(draft.iterdir())})
        if not is_whole(folder):  # a fold beside this one may have been faster
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _print(file: Path) -> str:
    """Size and hash of both ends: a torn or sparse file shows, and 17 GB need not be read twice."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        edges = stream.read(EDGE)
        stream.seek(max(0, size - EDGE))
        edges += stream.read(EDGE)
    return f"{size} {hashlib.sha256(edges).hexdigest()[:16]}"


def _disk(path: Path) -> int | None:
    return path.stat().st_dev if path.exists() else None

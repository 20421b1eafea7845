"""Keep quantised weights between folds, and tell whether a kept copy can be trusted. Free of torch.

A copy is a folder of safetensors in transformers' format with a manifest that is written last. Its
name has a hash of all that it depends on, so another source, setting or library version makes
another folder.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqa_utils.artifacts.manifest import tear, write_manifest
from vqa_utils.config import Config
from vqa_utils.model.cache_folders import cache_folder, source_key
from vqa_utils.setting_types import AUTO

FORMAT = 1  # of the copies; to be raised when what is saved changes
LIBRARIES = ("bitsandbytes", "transformers")  # that decide how weights are packed and named
EDGE = 2**20  # bytes at each end of a file that the manifest's hash covers
WORTH_KEEPING = 10**9  # bytes; a smaller model is read in seconds


def copy_folder(config: Config, name: str, size: int) -> Path | None:
    """Find a place for the copy `name` of `size` bytes, made or not; None where none is kept."""
    if config.cache_dir == AUTO and size < WORTH_KEEPING:
        return None
    return cache_folder(config, name, size, is_whole)


def cache_key(config: Config, source: Path, dtype: str) -> str:
    """Return 16 hex digits that change with the source's files, the quantisation and the libraries.

    Args:
        config: the settings.
        source: as of `source_key`.
        dtype: of what is not quantised.
    """
    settings = [config.quantization, config.use_double_quant, dtype, FORMAT]
    return source_key(source, settings, LIBRARIES)


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

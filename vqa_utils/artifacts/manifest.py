"""Tell whether a folder is whole: a manifest, written last, has each file's size and hash."""

from collections.abc import Callable
from pathlib import Path

from vqa_utils.artifacts.files import TornFile, read_json, sha256, write_json

MANIFEST = "manifest.json"


def size_and_hash(file: Path) -> str:
    """Describe a file by its bytes and its SHA-256."""
    return f"{file.stat().st_size} {sha256(file)}"


def write_manifest(folder: Path, describe: Callable[[Path], str] = size_and_hash) -> None:
    """Describe all files of a folder, once nothing more is written there."""
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file != folder / MANIFEST:
            files[file.relative_to(folder).as_posix()] = describe(file)
    write_json(folder / MANIFEST, files)


def tear(folder: Path, describe: Callable[[Path], str] = size_and_hash) -> str:
    """Say what a folder lacks; "" if it is whole.

    Args:
        folder: with a manifest by `write_manifest`.
        describe: as the manifest was written with.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return f"it has no {MANIFEST}, which is written last"
    except TornFile:
        return f"its {MANIFEST} is torn"
    if not isinstance(manifest, dict):
        return f"its {MANIFEST} is torn"
    for name, written in manifest.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is not there"
        if describe(file) != written:
            return f"{name} ({file.stat().st_size:,} bytes) is not as it was written"
    return ""

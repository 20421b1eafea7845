"""List the files that a run needs."""

import shutil
from pathlib import Path

from vqa_utils.artifacts.paths import ROOT

FILES = ("run_all.py", "requirements.txt", "README.md", "LICENSE")
FOLDERS = ("notebooks", "vqa_utils")
ENDINGS = (
    *(".py", ".ipynb", ".md", ".json", ".cu", ".jinja", ".txt", ".safetensors"),
    *(".css", ".js", ".otf"),  # of the run's page and the figures
)


def code_files() -> list[Path]:
    """Return the files of the project that a run needs, from the repository on."""
    found = [ROOT / name for name in FILES]
    for folder in FOLDERS:
        found += sorted(file for file in (ROOT / folder).rglob("*") if _is_code(file))
    return [file.relative_to(ROOT) for file in found]


def copy_code(folder: Path) -> None:
    """Copy those files into a folder."""
    for file in code_files():
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, target)


def _is_code(file: Path) -> bool:
    within = file.relative_to(ROOT).parts
    is_cache = any(part == "__pycache__" or part.startswith(".") for part in within)
    return file.is_file() and file.suffix in ENDINGS and not is_cache

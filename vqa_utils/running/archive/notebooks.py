"""Write executed notebooks without names and secrets of the machine.

papermill writes the copy after each cell, through a handler that is named by a scheme:

    archive:/home/kim/vqa/runs/r/notebooks/01_eda.ipynb
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from papermill.iorw import papermill_io

from vqa_utils.artifacts.files import write_text
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.places import without_names
from vqa_utils.artifacts.run import outside_folders

SCHEME = "archive:"


class ArchiveHandler:
    """Writes notebooks for papermill, each time as a whole or not at all.

    Attributes:
        folders: named shortly in them, beside the repository, the runs and the home folder.
    """

    folders: Iterable[str] = ()

    def write(self, text: str, path: str) -> None:
        """Write a notebook; its JSON is as nbformat writes it."""
        notebook = json.loads(text)
        file = path.removeprefix(SCHEME)
        notebook["metadata"]["papermill"]["output_path"] = file
        notebook = without_names(notebook, self.folders)
        written = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True)
        write_text(Path(file), f"{written}\n")

    def pretty_path(self, path: str) -> str:
        """Name a notebook in papermill's log."""
        return path.removeprefix(SCHEME)


_handler = ArchiveHandler()
papermill_io.register(SCHEME, _handler)


def archive_name(path: Path, parameters: dict[str, Any]) -> str:
    """Name the copy of this process's next notebook for papermill.

    Args:
        path: the copy.
        parameters: the notebook's; `run_id` and `predict` name folders with data.
    """
    folders = outside_folders(RunPaths(parameters.get("run_id", "")))
    if parameters.get("predict"):
        folders.append(parameters["predict"])
    _handler.folders = folders
    return f"{SCHEME}{path}"


def keep_attempt(archived: Path, end: str) -> None:
    """Move a notebook beside that of the next attempt: "<step>-<end>1", or the next number."""
    stem = f"{archived.stem}-{end}"
    copies = list(archived.parent.glob(f"{stem}*{archived.suffix}"))
    if archived.exists():
        archived.rename(archived.with_stem(f"{stem}{len(copies) + 1}"))

"""Several runs as the members of one ensemble: found, checked against each other, and blended by 05_ensemble."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.ensembling.other_runs import ENSEMBLE, read_runs
from vqa_utils.errors import RunError
from vqa_utils.running.resolution import checked_run_id

if TYPE_CHECKING:
    from rich.console import Console


def blend_runs(run_ids: Sequence[str], run_id: str, console: "Console") -> None:
    """Check the runs, and execute 05_ensemble on them into a new run's folder, which is no run to go on with.

    Raises:
        RunError: the runs cannot be blended, or the folder is there already.
    """
    from vqa_utils.running.execution import (
        execute,  # papermill, which a notebook that reads runs has no use for
    )
    from vqa_utils.running.terminal import follow, progress_lines

    paths = RunPaths(checked_run_id(run_id))
    if paths.folder.exists():
        raise RunError(f"{shown(paths.folder)} is there already: take another --run-id")
    members = list(read_runs(run_ids).oof)
    with progress_lines(console) as progress, follow(progress, console, ENSEMBLE, None):
        execute(
            ENSEMBLE,
            paths.notebooks / f"{ENSEMBLE}.ipynb",
            {"run_id": run_id, "members": ",".join(members)},
        )
    record = read_json(paths.members)
    console.print(record["decision"], markup=False)
    console.print(
        "weights:",
        ", ".join(f"{name} {weight:.3f}" for name, weight in record["weights"].items()),
        markup=False,
    )
    console.print(f"submission: {shown(paths.submission(use_kfold=True))}")

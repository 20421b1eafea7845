"""Blend finished runs: a new run of 05_ensemble alone, with the runs as its members."""

from collections.abc import Sequence

from rich.console import Console

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.ensembling.other_runs import ENSEMBLE, read_runs
from vqa_utils.errors import RunError
from vqa_utils.running.notebooks.execution import execute
from vqa_utils.running.notebooks.kernels import clean_environment
from vqa_utils.running.resolution import checked_run_id
from vqa_utils.running.terminal.live import follow, progress_lines


def blend_runs(run_ids: Sequence[str], run_id: str, console: Console) -> None:
    """Execute 05_ensemble on finished runs, into a new folder; no run can go on from there.

    Args:
        run_ids: the members.
        run_id: the new folder.
        console: the terminal.

    Raises:
        RunError: the runs cannot be blended, or the folder exists.
    """
    paths = RunPaths(checked_run_id(run_id))
    if paths.folder.exists():
        raise RunError(f"{shown(paths.folder)} is there already: take another --run-id")
    members = list(read_runs(run_ids).oof)
    parameters = {"run_id": run_id, "members": ",".join(members)}
    clean_environment()
    with progress_lines(console) as progress, follow(progress, console, ENSEMBLE, train_log=None):
        execute(ENSEMBLE, paths.notebooks / f"{ENSEMBLE}.ipynb", parameters)
    record = read_json(paths.members)
    weights = [f"{name} {weight:.3f}" for name, weight in record["weights"].items()]
    console.print(record["decision"], markup=False)
    console.print(f"weights: {', '.join(weights)}", markup=False)
    console.print(f"submission: {shown(paths.submission(use_kfold=True))}")

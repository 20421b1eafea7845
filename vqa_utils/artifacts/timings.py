"""Read the seconds of each archived notebook (kernel start, imports, work); write durations."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from vqa_utils.artifacts.files import TornFile, read_json

EXECUTED_IN = "executed in"
SPLIT = ["kernel start", "imports", "work"]


class TimeSplit(NamedTuple):
    """Seconds of an executed notebook, in the order of `SPLIT`."""

    kernel_start: float
    """until the first cell"""
    imports: float
    """of the cells before the parameters; none are left in a kernel that started ahead"""
    work: float
    """of the rest"""


def time_table(folder: Path, names: Sequence[str]) -> pd.DataFrame:
    """Tabulate the seconds of archived notebooks.

    Args:
        folder: `notebooks/` of a run.
        names: of notebooks; those that have not been executed to their end are left out.

    Returns:
        One line per notebook and one for `all`: `notebook`, the columns `SPLIT`, and their `total`.
        Notebooks that ran side by side add up to more than the run took. If some were taken over
        from another run, `executed in` names it.
    """
    run_id = folder.parent.name
    splits: dict[str, TimeSplit] = {}
    executed_in = []
    for name in names:
        notebook = _executed(folder / f"{name}.ipynb")
        if notebook is None:
            continue
        splits[name] = time_split(notebook)
        parameters = notebook["metadata"]["papermill"]["parameters"]
        executed_in.append(parameters.get("run_id", run_id))
    table = pd.DataFrame.from_dict(splits, orient="index", columns=SPLIT)
    table.loc["all"] = table.sum()  # before `total`, so that it has one too
    table["total"] = table.sum(axis=1)
    table = table.round(1).rename_axis("notebook").reset_index()
    if set(executed_in) <= {run_id}:
        return table
    return table.assign(**{EXECUTED_IN: [*executed_in, ""]})  # of the line `all`, none


def seconds_of(folder: Path, names: Sequence[str]) -> float:
    """Add up the seconds of archived notebooks.

    Args:
        folder: `notebooks/` of a run.
        names: of notebooks; those that have not been executed to their end count as 0.
    """
    notebooks = [_executed(folder / f"{name}.ipynb") for name in names]
    return sum(notebook["metadata"]["papermill"]["duration"] for notebook in notebooks if notebook)


def _executed(file: Path) -> dict[str, Any] | None:
    """Read an executed notebook; None of one that is not there, torn, at work or was killed."""
    try:
        notebook = read_json(file)
    except (FileNotFoundError, TornFile):
        return None
    # papermill writes it with the first cell, and the duration with the last
    clock = notebook.get("metadata", {}).get("papermill", {})
    return notebook if clock.get("duration") is not None else None


def duration(seconds: float) -> str:
    """Write seconds as "2 h 5 min", "5 min" or "40 s"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def time_split(notebook: dict[str, Any]) -> TimeSplit:
    """Read papermill's clock in an executed notebook."""
    whole = notebook["metadata"]["papermill"]
    code = [cell["metadata"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # papermill's own clock starts before the kernel does
    kernel_start = (_start(code[0]["papermill"]) - _start(whole)).total_seconds()
    imports = 0.0  # seconds
    for metadata in code:
        if "parameters" in metadata.get("tags", ()):
            break
        imports += metadata["papermill"]["duration"] or 0.0  # None after a cell that failed
    work = whole["duration"] - kernel_start - imports
    return TimeSplit(kernel_start, imports, work)


def _start(papermill: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(papermill["start_time"])

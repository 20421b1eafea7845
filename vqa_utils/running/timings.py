"""Where a run's time went: papermill's clock in the archived notebooks, split into kernel start, imports and work."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from vqa_utils.artifacts.files import read_json

EXECUTED_IN = "executed in"
SPLIT = ["kernel start", "imports", "work"]


def time_table(folder: Path, names: Sequence[str]) -> pd.DataFrame:
    """A line for each archived notebook of these names, and one for `all`: seconds of each part, and their `total`.

    Notebooks that ran side by side add up to more than the run took. Where some were executed in another run and taken over,
    `executed in` names it.
    """
    paths = {name: folder / f"{name}.ipynb" for name in names}
    notebooks = {name: read_json(path) for name, path in paths.items() if path.exists()}
    lines = {name: time_split(notebook) for name, notebook in notebooks.items()}
    table = pd.DataFrame.from_dict(lines, orient="index", columns=SPLIT)
    table.loc["all"] = table.sum()
    table = table.assign(total=table.sum(axis=1)).round(1).rename_axis("notebook").reset_index()
    run = folder.parent.name
    executed_in = [
        notebook["metadata"]["papermill"]["parameters"].get("run_id", run)
        for notebook in notebooks.values()
    ]
    return table if set(executed_in) <= {run} else table.assign(**{EXECUTED_IN: [*executed_in, ""]})


def time_split(notebook: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds until the first cell of an executed notebook, in the cells up to its parameters, and in the rest."""
    whole = notebook["metadata"]["papermill"]
    code = [cell["metadata"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    parameters = next(
        i for i, metadata in enumerate(code) if "parameters" in metadata.get("tags", ())
    )
    kernel = (_time(code[0]["papermill"]) - _time(whole)).total_seconds()
    imports = sum(metadata["papermill"]["duration"] for metadata in code[:parameters])
    return kernel, imports, whole["duration"] - kernel - imports


def _time(papermill: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(papermill["start_time"])

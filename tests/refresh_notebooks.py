"""Make the notebooks' .ipynb files from their .py sources and run them on the demo: `python tests/refresh_notebooks.py`.

Cell ids are the cells' numbers, so that a refresh changes only what really changed. The runs folder is a temporary one.
"""

import os
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vqa_utils.artifacts.paths import NOTEBOOKS, RUNS_VARIABLE  # noqa: E402  (the package is not installed)

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def refresh(source: Path) -> None:
    """Write the executed notebook beside its source."""
    notebook = jupytext.read(source)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
    client = NotebookClient(
        notebook,
        resources={"metadata": {"path": str(source.parent)}},
        kernel_name="python3",
        coalesce_streams=True,  # lines that come late would be outputs of their own
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop(
            "execution", None
        )  # times, which would change each time, as progress bars do
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, source.with_suffix(".ipynb"))


def main() -> None:
    """Refresh the six in their order."""
    with tempfile.TemporaryDirectory() as runs:
        os.environ[RUNS_VARIABLE] = runs
        for source in sorted(NOTEBOOKS.glob("[0-9]*.py")):
            print(source.name, flush=True)
            refresh(source)


if __name__ == "__main__":
    main()

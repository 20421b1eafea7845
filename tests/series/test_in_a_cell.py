"""`!python run_all.py` in a notebook's cell, through a real kernel."""

import os
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from vqa_utils.artifacts.paths import ROOT

pytestmark = pytest.mark.slow


def test_a_cell_keeps_plain_lines_and_no_drawings(korean_folder, tmp_path):
    words = f"{sys.executable} {ROOT / 'run_all.py'} --data {korean_folder} --run-id cell"
    cells = [
        new_code_cell("import sys, os; print(os.environ['JPY_PARENT_PID'])"),
        new_code_cell("!python -c 'import sys; print(sys.stdout.isatty())'"),
        new_code_cell(f"!VQA_RUNS_DIR={tmp_path} {words} --only 01_eda"),
    ]
    notebook = new_notebook(cells=cells)
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    parent, is_terminal, run = ("".join(o["text"] for o in cell["outputs"]) for cell in cells)
    assert int(parent) == os.getpid() and is_terminal.strip() == "True"
    assert "01_eda" in run and "run cell" in run
    assert "\x1b" not in run and len(run) < 3000, "nothing is drawn twice"
    assert nbformat.validate(notebook) is None

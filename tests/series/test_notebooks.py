"""The notebooks as files: pairs in step, and the rules of their shape. nbval runs them."""

import ast
import re

import jupytext
import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from stray_outputs import stray_outputs

from vqa_utils.artifacts.paths import NOTEBOOKS

SOURCES = sorted(NOTEBOOKS.glob("[0-9]*.py"))
OF_THE_PACKAGE = (ast.FunctionDef, ast.ClassDef, ast.Try, ast.While, ast.Lambda)


def notebook(source):
    return nbformat.read(source.with_suffix(".ipynb"), 4)


def code_cells(source):
    return [cell for cell in notebook(source).cells if cell.cell_type == "code"]


def test_the_series_is_complete():
    assert [s.stem for s in SOURCES] == [
        "01_eda",
        "02_folds",
        "03_train_fold",
        "04_infer",
        "05_ensemble",
        "06_analysis",
    ]
    assert [n.stem for n in sorted(NOTEBOOKS.glob("*.ipynb"))] == [s.stem for s in SOURCES]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_each_notebook_has_the_cells_of_its_source(source):
    def cells(nb):
        return [
            (c.cell_type, c.source.strip(), sorted(c.metadata.get("tags", []))) for c in nb.cells
        ]

    assert cells(notebook(source)) == cells(jupytext.read(source)), (
        "run: python tests/refresh_notebooks.py"
    )


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_cells_are_small_and_leave_the_work_to_the_package(source):
    for cell in code_cells(source):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 25
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, OF_THE_PACKAGE), ast.unparse(node)
    sizes = sorted(len(cell.source.splitlines()) for cell in code_cells(source))
    assert sizes[len(sizes) // 2] < 7


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_parameters_are_literals_with_help_that_papermill_reads(source):
    tagged = [cell for cell in code_cells(source) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for line in tagged[0].source.splitlines():
        assert re.fullmatch(r'\w+: (str|int) = ("[^"=]*"|\d+)  # [^=]+', line), line
    found = papermill.inspect_notebook(str(source.with_suffix(".ipynb")))
    assert found["run_id"]["default"] == '"interactive"' and all(p["help"] for p in found.values())
    assert ("fold" in found) == (source.stem in ("03_train_fold", "04_infer"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_a_computed_number_is_compared_and_no_picture_is(source):
    compared = []
    for cell in code_cells(source):
        if "nbval-ignore-output" not in cell.metadata.get("tags", []):
            compared += cell.outputs
    printed = "".join(output["text"] for output in compared if output.output_type == "stream")
    assert re.search(r"\d", printed)
    for output in compared:
        assert output.output_type != "display_data" and "image/png" not in output.get("data", {})


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_committed_outputs_are_whole_and_show_no_machine(source):
    cells = code_cells(source)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/home/|/root/|/tmp/|/work/|site-packages", text)
    assert stray_outputs(notebook(source)) == []


def test_a_stray_output_is_found():
    """Of each kind, beside outputs that may stay."""
    stray = [
        new_output("stream", name="stderr", text="a log"),
        new_output("stream", name="stdout", text="\x1b[31mred\x1b[0m"),
        new_output("stream", name="stdout", text="\r 40%|████      | 4/10"),
        new_output("stream", name="stdout", text="a.py:3: FutureWarning: it goes"),
        new_output("display_data", {"text/plain": "Output()"}),
        new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
        new_output("error", ename="E", evalue="", traceback=[]),
    ]
    fine = [
        new_output("stream", name="stdout", text="No warning: 40% of 10 rows"),
        new_output("execute_result", {"text/html": "<b>1</b>", "text/plain": "1"}),
    ]
    cells = [new_code_cell(outputs=[*fine, output]) for output in stray]
    found = stray_outputs(new_notebook(cells=cells))
    assert [line.split(":")[0] for line in found] == [f"cell {n}" for n in range(len(stray))]
    assert stray_outputs(new_notebook(metadata={"widgets": {}})) == ["widgets"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_code_is_python_alone(source):
    """No magic and no shell command: a cell means the same in each kernel, and in an export."""
    for cell in code_cells(source):
        for line in cell.source.splitlines():
            assert not line.lstrip().startswith(("%", "!", "?")), line
            assert "get_ipython" not in line and not line.rstrip().endswith("?")

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from stand_in import clock

from vqa_utils.artifacts.files import read_json, write_json
from vqa_utils.artifacts.timings import seconds_of, time_split, time_table
from vqa_utils.running.notebooks.execution import execute


def test_a_notebooks_time_is_split_at_its_first_cell_and_its_parameters():
    cells = [
        new_markdown_cell("A question", metadata={"papermill": {"duration": 0.1}}),
        new_code_cell("import torch", metadata=clock(1.5, 4.0)),
        new_code_cell("run_id = ''", metadata={"tags": ["parameters"], **clock(5.5, 0.25)}),
        new_code_cell(
            "run_id = 'r'", metadata={"tags": ["injected-parameters"], **clock(5.75, 0.25)}
        ),
        new_code_cell("train()", metadata=clock(6, 10)),
    ]
    split = time_split(new_notebook(cells=cells, metadata=clock(0, 17.0)))
    assert split == (1.5, 4.0, 11.5)


@pytest.mark.parametrize(
    "metadata", [{}, {"papermill": {}}, {"papermill": {"duration": None, "parameters": {}}}]
)
def test_a_notebook_that_was_not_executed_to_its_end_is_left_out(tmp_path, metadata):
    write_json(tmp_path / "killed.ipynb", {"metadata": metadata, "cells": []})
    assert time_table(tmp_path, ["killed"])["notebook"].tolist() == ["all"]
    assert seconds_of(tmp_path, ["killed"]) == 0
    write_json(tmp_path / "other.ipynb", {"cells": []})  # JSON, and no notebook
    assert seconds_of(tmp_path, ["other"]) == 0


@pytest.mark.slow
def test_the_table_of_executed_notebooks(notebooks, tmp_path):
    notebooks("adds", "1 + 1")
    for name in ("first", "second"):
        execute("adds", tmp_path / f"{name}.ipynb", {"run_id": "r"})
    table = time_table(tmp_path, ["first", "second", "never_ran"]).set_index("notebook")
    assert list(table.index) == ["first", "second", "all"] and (table["kernel start"] > 0).all()
    parts = table[["kernel start", "imports", "work"]].sum(axis=1)
    assert (table["total"] - parts).abs().max() < 0.2
    whole = sum(
        read_json(tmp_path / f"{name}.ipynb")["metadata"]["papermill"]["duration"]
        for name in ("first", "second")
    )
    assert abs(table.loc["all", "total"] - whole) < 0.1

"""Archived notebooks as HTML."""

import os
import re
import time

import nbformat
import pytest
from nbconvert.exporters import TemplateExporter, templateexporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from vqa_utils.analysis.page.run_facts import notebooks_of
from vqa_utils.artifacts.files import settings_to_json, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.presets import preset
from vqa_utils.running import run_page
from vqa_utils.running.archive.html_copies import write_html_copies
from vqa_utils.running.run_clock import RunClock
from vqa_utils.running.run_page import RunPage, show_in_browser
from vqa_utils.running.stages import ANALYSIS, ENSEMBLE, Step

UNVERSIONED = '{"cells": [], "metadata": {}, "nbformat": 4}'
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    paths = RunPaths("r")
    write_json(paths.config, settings_to_json(preset("demo")))
    return paths


@pytest.fixture
def notebook(paths):
    """An archived notebook with a table, a picture and printed text."""
    outputs = [
        new_output("display_data", {"text/html": "<table><td>bold</td></table>"}),
        new_output("display_data", {"image/png": PNG}),
        new_output("stream", text="<script>printed</script>"),
    ]
    cells = [new_markdown_cell("# Title"), new_code_cell("1 + 1", outputs=outputs)]
    paths.notebooks.mkdir(parents=True)
    file = paths.notebooks / "06_analysis.ipynb"
    nbformat.write(new_notebook(cells=cells), file)
    return file


def test_a_copy_shows_all_of_a_notebook_without_network(notebook):
    write_html_copies(notebook.parent)
    html = notebook.with_suffix(".html").read_text(encoding="utf-8")
    assert "<h1" in html and "<td>bold</td>" in html and "&lt;script&gt;printed" in html
    assert f"data:image/png;base64,{PNG}" in html
    assert not re.findall(r"""(?:src|href)=["']?https?:""", html)


def test_a_copy_needs_no_templates_below_the_python(notebook, monkeypatch):
    """`pip install --target` puts them elsewhere."""
    monkeypatch.setattr(templateexporter, "jupyter_path", lambda *names: [])
    monkeypatch.setattr(TemplateExporter, "get_prefix_root_dirs", lambda exporter: [])
    write_html_copies(notebook.parent)
    assert "<h1" in notebook.with_suffix(".html").read_text(encoding="utf-8")


def test_a_copy_is_made_anew_when_its_notebook_is_newer(notebook):
    copy = notebook.with_suffix(".html")
    write_html_copies(notebook.parent)
    copy.write_text("kept")
    write_html_copies(notebook.parent)
    assert copy.read_text() == "kept"
    later = copy.stat().st_mtime + 1
    os.utime(notebook, (later, later))
    write_html_copies(notebook.parent)
    assert "<h1" in copy.read_text(encoding="utf-8")


def test_the_page_links_to_copies_that_are_current(notebook, paths):
    """One that has run again since, and may have failed, is shown itself."""
    for name in ("01_eda", "05_ensemble"):
        (paths.notebooks / f"{name}.ipynb").write_text(notebook.read_text())
    write_html_copies(paths.notebooks)
    (paths.notebooks / "01_eda.html").unlink()
    later = time.time() + 60
    os.utime(paths.notebooks / "05_ensemble.ipynb", (later, later))
    files = {found.name: found.file for found in notebooks_of(paths, None)}
    assert files == {
        "01_eda": "01_eda.ipynb",
        "05_ensemble": "05_ensemble.ipynb",
        "06_analysis": "06_analysis.html",
    }


@pytest.mark.parametrize("torn", ["", "{", '{"metadata": {}}', UNVERSIONED])
def test_a_torn_notebook_is_in_no_others_way(notebook, paths, monkeypatch, torn):
    monkeypatch.setattr(run_page.webbrowser, "open", lambda address: None)
    (paths.notebooks / "01_eda.ipynb").write_text(torn)
    show_in_browser(paths)
    assert notebook.with_suffix(".html").exists() and paths.page.exists()
    assert not (paths.notebooks / "01_eda.html").exists()


@pytest.mark.parametrize("through", [ANALYSIS, ENSEMBLE])
def test_a_run_makes_copies_once_it_is_analysed(notebook, paths, console, monkeypatch, through):
    monkeypatch.setattr(run_page, "POLL_SECONDS", 0.01)
    step = Step(through)
    clock = RunClock(paths, preset("demo"), console)
    with RunPage(paths, clock, [step], console):
        clock.through.add(step)
    assert notebook.with_suffix(".html").exists() == (through is ANALYSIS)

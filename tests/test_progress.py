import io

import nbformat
import pytest
from rich.console import Console

from vqa_utils import progress as module
from vqa_utils.execution import execute
from vqa_utils.paths import ROOT
from vqa_utils.progress import progress


@pytest.fixture
def terminal(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(module, "Console", lambda: console)
    return console.file


def test_short_work_has_no_bar(terminal):
    assert list(progress(iter("abc"), 3, "reading")) == ["a", "b", "c"]
    assert terminal.getvalue() == ""


def test_a_terminal_shows_how_many_are_done(terminal, monkeypatch):
    monkeypatch.setattr(module, "DELAY_SECONDS", 0)
    assert list(progress(iter("abc"), 3, "reading")) == ["a", "b", "c"]
    assert "reading" in terminal.getvalue() and "100%" in terminal.getvalue()


def test_a_notebook_keeps_one_output_of_many_updates(notebooks, tmp_path):
    setup = "import vqa_utils.progress as p; p.DELAY_SECONDS = p.UPDATE_SECONDS = 0"
    notebooks("shows", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {setup}", "sum(p.progress(range(500), 500, 'adding'))")
    execute("shows", tmp_path / "out.ipynb", {})
    *_, cell = nbformat.read(tmp_path / "out.ipynb", 4).cells
    bar, result = cell.outputs
    assert bar["data"]["text/plain"].endswith("] 500/500") and result["data"]["text/plain"] == "124750"

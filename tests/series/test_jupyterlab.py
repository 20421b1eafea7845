"""The notebooks by hand: opened in JupyterLab in a browser, and run from top to bottom."""

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from chromium import CHROMIUM
from playwright.sync_api import sync_playwright
from stray_outputs import stray_outputs

from vqa_utils.artifacts.paths import NOTEBOOKS, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]
PATIENCE = 120  # seconds for a start, a notebook or an end, on a busy machine
NAMES = ("01_eda", "02_folds")
FIGURES = {"01_eda": 3, "02_folds": 1}
OPEN = "window.jupyterapp?.shell.currentWidget"
IS_READY = f"""path => {OPEN}?.context?.path === path
  && {OPEN}.sessionContext.session?.kernel?.status === "idle\""""
# Each code cell has run, or one has failed: the ones after it never run
IS_DONE = f"""() => {{
  const models = {OPEN}.content.widgets.map(cell => cell.model);
  const cells = models.filter(model => model.type === "code");
  const ran = model => model.executionCount && model.executionState === "idle";
  const failed = model => model.outputs.toJSON().some(output => output.output_type === "error");
  return cells.some(failed) || cells.every(ran);
}}"""
ARE_DRAWN = "images => images.map(image => image.complete && image.naturalWidth > 100)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the repository's notebooks, without outputs, and of the package."""
    folder = tmp_path_factory.mktemp("jupyterlab")
    unneeded = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "vqa_utils", folder / "vqa_utils", ignore=unneeded)
    shutil.copytree(NOTEBOOKS, folder / "notebooks", ignore=unneeded)
    for name in NAMES:
        file = folder / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(file, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, file)
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    """The address of a server that has the notebooks; it and its kernels end with the tests."""
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    own = {name: str(folder / name.lower()) for name in (*places, "VQA_RUNS_DIR")}
    command = [sys.executable, "-m", "jupyterlab", "notebooks", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", "--port=0", "--expose-app-in-browser"]
    log = folder / "log.txt"
    with log.open("w") as written:
        server = psutil.Popen(
            command, cwd=folder, env={**os.environ, **own}, stdout=written, stderr=written
        )
    try:
        yield address_of(server, Path(own["JUPYTER_RUNTIME_DIR"]), log)
    finally:
        left = end(server)
    assert left == []


def address_of(server, runtime, log):
    """Wait until a server listens; return its address, and the token that it made."""
    until = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < until:
        for file in runtime.glob("jpserver-*.json"):
            with contextlib.suppress(json.JSONDecodeError):  # half-written
                about = json.loads(file.read_text())
                return f"http://127.0.0.1:{about['port']}/lab/tree", about["token"]
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def end(server):
    """Ask a server to end; kill what stays, and return its command lines."""
    if server.poll() is not None:
        return []
    processes = [server, *server.children(recursive=True)]
    server.terminate()
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    left = [" ".join(process.cmdline()) for process in alive]
    for process in alive:
        process.kill()
    return left


@pytest.fixture(scope="module")
def page(lab):
    """A page of a browser, whose console has to be silent."""
    problems = []

    def note(message):
        if message.type == "error":
            problems.append(message.text)

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        yield page
        browser.close()
    assert problems == []


def run_all_cells(page, lab, name):
    """Open a notebook, run it through the menu, wait for its last cell, and save it."""
    address, token = lab
    page.goto(f"{address}/{name}.ipynb?token={token}&reset")  # without the notebook before
    page.wait_for_function(IS_READY, arg=f"{name}.ipynb")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_function(IS_DONE)
    page.evaluate(f"{OPEN}.context.save()")


def test_exploration_and_folds_run_from_top_to_bottom(lab, page, folder):
    sources = {file: file.read_text() for file in (folder / "notebooks").glob("*.py")}
    for name in NAMES:
        run_all_cells(page, lab, name)
        notebook = nbformat.read(folder / "notebooks" / f"{name}.ipynb", 4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert stray_outputs(notebook) == []
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()
        assert prompts == [f"[{number}]:" for number in range(1, len(cells) + 1)]
        figures = page.locator(".jp-RenderedImage img")
        assert figures.evaluate_all(ARE_DRAWN) == [True] * FIGURES[name]
    run = folder / "vqa_runs_dir" / "interactive"
    assert {file.name for file in run.iterdir()} >= {"config.json", "images.csv", "folds.csv"}
    assert {file: file.read_text() for file in sources} == sources, "the .ipynb alone is saved"

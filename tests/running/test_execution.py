import sys

import nbformat
import psutil
import pytest

from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.config import to_dict
from vqa_utils.errors import RunError
from vqa_utils.presets import preset
from vqa_utils.running.notebooks import execution, kernels
from vqa_utils.running.notebooks.execution import (
    NotebookError,
    OutOfMemory,
    execute,
    where_memory_ran_out,
)
from vqa_utils.running.notebooks.processes import KernelDied
from vqa_utils.running.stages import Stage, Step


def test_an_unknown_parameter_is_an_error(notebooks, tmp_path):
    notebooks("two", "1 + 1")
    with pytest.raises(RunError, match=r"two\.ipynb: .*'run_id'.*'fold'"):
        execute("two", tmp_path / "out.ipynb", {"run_id": "r", "fold": 1})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.slow
def test_a_failing_notebook_is_archived_and_named(notebooks):
    notebooks("broken", "print(run_id)", "raise ValueError('no such picture')", "print('never')")
    archived = RunPaths("broken-run").notebooks / "broken.ipynb"
    with pytest.raises(RunError) as error:
        execute("broken", archived, {"run_id": "broken-run"})
    for datum in ("ValueError", "no such picture", "runs/broken-run/notebooks/broken.ipynb"):
        assert datum in str(error.value)
    cells = nbformat.read(archived, 4).cells
    text = str([cell.outputs for cell in cells if cell.cell_type == "code"])
    assert "broken-run" in text and "no such picture" in text and "never" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["{run_id}", "{", "100 % [a] {0}", "$HOME & co", "그림 폴더"])
def test_a_folder_of_any_name_holds_notebooks(tmp_path, monkeypatch, notebooks, name):
    folder = tmp_path / name
    folder.mkdir()
    notebooks("prints", "print(run_id)")
    (tmp_path / "prints.ipynb").rename(folder / "prints.ipynb")
    monkeypatch.setattr("vqa_utils.running.notebooks.execution.NOTEBOOKS", folder)
    execute("prints", folder / "archive" / "prints.ipynb", {"run_id": "{r}"})
    assert "{r}" in (folder / "archive" / "prints.ipynb").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "how"),
    [("os._exit(7)", "exit status 7"), ("os.kill(os.getpid(), 9)", r"signal 9 \(SIGKILL\)")],
)
def test_a_kernel_that_dies_is_named(notebooks, tmp_path, code, how):
    notebooks("dies", f"import os; {code}")
    with pytest.raises(KernelDied, match=rf"dies: its kernel died \({how}\); .* GiB of memory"):
        execute("dies", tmp_path / "archive" / "dies.ipynb", {})
    assert (tmp_path / "archive" / "dies.ipynb").exists()


@pytest.mark.slow
def test_a_cell_that_takes_too_long_ends_its_notebook_and_kernel(notebooks, tmp_path):
    kernel = tmp_path / "kernel"
    notebooks(
        "sleeps",
        f"import os, pathlib, time; pathlib.Path({str(kernel)!r}).write_text(str(os.getpid()))",
        "while True: time.sleep(1)",
    )
    archived = tmp_path / "archive" / "sleeps.ipynb"
    with pytest.raises(NotebookError, match=r"sleeps: .* 1.5 s .*\n.*sleeps\.ipynb"):
        execute("sleeps", archived, {}, cell_timeout=1.5)
    assert archived.exists() and not psutil.pid_exists(int(kernel.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("environments", [[], [{}, {}]], ids=["in turn", "side by side"])
@pytest.mark.parametrize("victim", ["os.getpid()", "os.getppid()"], ids=["kernel", "process"])
def test_what_has_died_is_tried_once_more(small_run, notebooks, monkeypatch, environments, victim):
    if not environments and victim == "os.getppid()":
        pytest.skip("that would be this process")
    make, paths, _ = small_run
    monkeypatch.setattr("vqa_utils.running.runner.fold_environments", lambda *args: environments)
    out = str(paths.folder / "fold{fold}.txt")
    dies = f"""
import os, time
with open({out!r}.format(fold=fold), "a") as file: file.write("x")
if fold == 0 and open({out!r}.format(fold=fold)).read() == "x" or fold == 2:
    os.kill({victim}, 9)
    time.sleep(60)
"""
    notebooks("works", dies)
    path = execution.NOTEBOOKS / "works.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source += "\nfold: int = 0  # fold"
    nbformat.write(notebook, path)
    stage = Stage("works", writes=("fold{fold}.txt",), per_fold=True)
    one = make()
    one.run([Step(stage, 0), Step(stage, 1)])
    written = [(paths.folder / f"fold{fold}.txt").read_text() for fold in (0, 1)]
    assert written == ["xx", "x"]
    assert "once more" in one.console.file.getvalue()
    if victim == "os.getpid()":
        assert (paths.notebooks / "works-fold0-died1.ipynb").exists()
        assert "signal 9" in one.console.file.getvalue()
    with pytest.raises(KernelDied):
        one.run([Step(stage, 2), Step(stage, 1)])
    assert (paths.folder / "fold2.txt").read_text() == "xx", "not a third time"


STARTS = """
import os, pathlib, sys, time
starts = pathlib.Path(__file__).with_name("starts.txt")
with starts.open("a") as file:
    file.write("x")
if len(starts.read_text()) <= {failing}:
    {fails}
os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *sys.argv[1:]])
"""


@pytest.fixture
def kernel_that_fails(tmp_path, monkeypatch):
    """Makes a kernel that fails at its first starts; returns the file with an x for each start."""

    def make(failing, fails="sys.exit('Address already in use')"):
        spec = tmp_path / "jupyter" / "kernels" / "python3"
        spec.mkdir(parents=True)
        (spec / "start.py").write_text(STARTS.format(failing=failing, fails=fails))
        argv = [sys.executable, str(spec / "start.py"), "-f", "{connection_file}"]
        kernel = {"argv": argv, "display_name": "Python 3", "language": "python"}
        write_json(spec / "kernel.json", kernel)
        monkeypatch.setattr(kernels, "SPEC_FOLDERS", [str(tmp_path / "jupyter" / "kernels")])
        return spec / "starts.txt"

    return make


@pytest.mark.slow
def test_a_failing_notebook_is_archived_without_names(notebooks, monkeypatch, tmp_path):
    """The message for the terminal has the whole path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    data = tmp_path / "data"
    paths = RunPaths("broken")
    write_json(paths.config, to_dict(preset("demo", data=str(data))))
    notebooks(
        "broken",
        "import os; print(os.environ['HF_TOKEN'])",
        f"from pathlib import Path; Path({str(data / '{eyes}.csv')!r}).read_text()",
    )
    archived = paths.notebooks / "broken.ipynb"
    with pytest.raises(NotebookError, match=f"{data}/{{eyes}}.csv"):
        execute("broken", archived, {"run_id": "broken"})
    text = archived.read_text()
    assert "hf_planted" not in text and str(tmp_path) not in text and str(ROOT) not in text
    assert "$HF_TOKEN" in text and "~/data/{eyes}.csv" in text
    assert nbformat.read(archived, 4).metadata["papermill"]["output_path"] == (
        "runs/broken/notebooks/broken.ipynb"
    )


@pytest.mark.slow
def test_a_kernel_that_dies_as_it_starts_is_started_again(notebooks, kernel_that_fails, tmp_path):
    starts = kernel_that_fails(2)
    notebooks("once", f"open({str(tmp_path / 'out.txt')!r}, 'a').write('x')")
    execute("once", tmp_path / "archive" / "once.ipynb", {})
    assert (tmp_path / "out.txt").read_text() == "x" and starts.read_text() == "xxx"


@pytest.mark.slow
def test_a_kernel_that_hangs_as_it_starts_is_started_again(
    notebooks, kernel_that_fails, tmp_path, monkeypatch
):
    monkeypatch.setattr(execution, "START_TIMEOUT", 10)
    starts = kernel_that_fails(1, fails="time.sleep(600)")
    notebooks("once", f"open({str(tmp_path / 'out.txt')!r}, 'a').write('x')")
    execute("once", tmp_path / "archive" / "once.ipynb", {})
    assert (tmp_path / "out.txt").read_text() == "x" and starts.read_text() == "xx"


@pytest.mark.slow
def test_a_kernel_that_never_starts_is_given_up(notebooks, kernel_that_fails, tmp_path):
    starts = kernel_that_fails(3)
    notebooks("once", "1 + 1")
    with pytest.raises(RunError, match=r"once: .* 3 times"):
        execute("once", tmp_path / "archive" / "once.ipynb", {})
    assert starts.read_text() == "xxx"


ON_GPU_1 = "CUDA out of memory. GPU 1 has a total capacity of 14.74 GiB of which 1.2 GiB is free."


@pytest.mark.parametrize(
    ("kind", "message", "traceback", "expected"),
    [
        ("OutOfMemoryError", ON_GPU_1, ["in training_step"], OutOfMemory(1, "training")),
        ("OutOfMemoryError", ON_GPU_1, ["a", "in evaluation_loop"], OutOfMemory(1, "scoring")),
        ("OutOfMemoryError", "", ["in score_orders(model"], OutOfMemory(0, "scoring")),
        ("OutOfMemoryError", ON_GPU_1, ["cls.from_pretrained("], OutOfMemory(1, "loading")),
        ("RuntimeError", "CUBLAS_STATUS_ALLOC_FAILED", [], OutOfMemory(0, "training")),
        ("ValueError", "NaN gradients", ["in training_step"], None),
    ],
)
def test_an_error_says_where_memory_ran_out(kind, message, traceback, expected):
    assert where_memory_ran_out(kind, message, traceback) == expected

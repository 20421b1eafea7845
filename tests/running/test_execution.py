import sys

import nbformat
import pytest

from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.errors import RunError
from vqa_utils.running.execution import OutOfMemory, execute, where_memory_ran_out


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
    monkeypatch.setattr("vqa_utils.running.execution.NOTEBOOKS", folder)
    execute("prints", folder / "archive" / "prints.ipynb", {"run_id": "{r}"})
    assert "{r}" in (folder / "archive" / "prints.ipynb").read_text()


@pytest.mark.slow
def test_a_kernel_that_dies_is_named(notebooks, tmp_path):
    notebooks("dies", "import os; os._exit(9)")
    with pytest.raises(RunError, match="dies: its kernel died"):
        execute("dies", tmp_path / "dies.ipynb", {})


STARTS = """
import os, pathlib, sys
starts = pathlib.Path(__file__).with_name("starts.txt")
with starts.open("a") as file:
    file.write("x")
if len(starts.read_text()) <= {failing}:
    sys.exit("Address already in use")
os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *sys.argv[1:]])
"""


@pytest.fixture
def kernel_that_fails(tmp_path, monkeypatch):
    """Makes a kernel that exits at its first starts; returns the file with an x for each start."""

    def make(failing):
        spec = tmp_path / "jupyter" / "kernels" / "python3"
        spec.mkdir(parents=True)
        (spec / "start.py").write_text(STARTS.format(failing=failing))
        argv = [sys.executable, str(spec / "start.py"), "-f", "{connection_file}"]
        kernel = {"argv": argv, "display_name": "Python 3", "language": "python"}
        write_json(spec / "kernel.json", kernel)
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
        return spec / "starts.txt"

    return make


@pytest.mark.slow
def test_a_kernel_that_dies_as_it_starts_is_started_again(notebooks, kernel_that_fails, tmp_path):
    starts = kernel_that_fails(2)
    notebooks("once", f"open({str(tmp_path / 'out.txt')!r}, 'a').write('x')")
    execute("once", tmp_path / "archive" / "once.ipynb", {})
    assert (tmp_path / "out.txt").read_text() == "x" and starts.read_text() == "xxx"


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

"""Kernels that import while another notebook is at work."""

import json
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.artifacts.stop import STEP
from vqa_utils.planning.machine.gpus import T4
from vqa_utils.running import runner
from vqa_utils.running.notebooks import kernels
from vqa_utils.running.notebooks.attempts import Attempts
from vqa_utils.running.notebooks.execution import NotebookError, execute
from vqa_utils.running.notebooks.processes import NotebookProcess
from vqa_utils.running.stages import Stage, Step

pytestmark = pytest.mark.slow

PATIENCE = 60  # seconds until a wait in vain fails
LOOK = """
import json, os, sys
has_imported = "wave" in sys.modules
names = [name for name in globals() if not name.startswith("_")]
print(json.dumps([os.getpid(), has_imported, names, os.environ["{holder}"], os.getcwd()]))
"""


def kernels_here():
    """List the kernels that this process has started, itself or through others."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "ipykernel_launcher" in child.cmdline()]


@pytest.fixture
def waiting_kernels(notebooks, tmp_path):
    """Starts kernels that import what a notebook imports; none is left after the test."""

    def start(imports, count):
        notebooks("imports")
        path = tmp_path / "imports.ipynb"
        notebook = nbformat.read(path, 4)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(imports))
        nbformat.write(notebook, path)
        kernels.start_kernels(tmp_path / "imports.ipynb", count)
        return [kernel.provisioner.pid for kernel in kernels._waiting]

    yield start
    kernels.end_kernels()


@pytest.fixture
def look(notebooks, tmp_path):
    """Executes a notebook that tells about its kernel."""
    notebooks("looks", LOOK.format(holder=STEP))

    def run(step):
        archived = tmp_path / "archive" / f"{step}.ipynb"
        execute("looks", archived, {})
        (cell,) = (cell for cell in nbformat.read(archived, 4).cells if cell.get("outputs"))
        assert cell.execution_count == 2, "after the parameters, as in a fresh kernel"
        return json.loads(cell.outputs[0].text)

    return run


def test_a_notebook_finds_its_imports_done_and_nothing_else(waiting_kernels, look, tmp_path):
    started = waiting_kernels("import wave; left_over = 1", 2)
    for number, pid in enumerate(started):
        found, has_imported, names, step, folder = look(f"step {number}")
        assert found == pid and has_imported and step == f"step {number}"
        assert "wave" not in names and "left_over" not in names
        assert folder == str(tmp_path)
        assert not psutil.pid_exists(pid), "its notebook is through"
    found, has_imported, *_ = look("step 2")
    assert found not in started and not has_imported, "papermill starts one where none waits"


IMPORTS = """
import os, wave
with open({out!r}, "a") as file:
    print({name!r}, os.environ[{holder!r}], os.getpid(), file=file)
"""


@pytest.fixture
def series_of_three(notebooks, tmp_path):
    """Writes notebooks that tell when their kernels import; the second fails if it is told to."""

    def write(*, fails=False):
        out = tmp_path / "imports.txt"
        for name in ("first", "second", "third"):
            notebooks(name, "raise ValueError" if fails and name == "second" else "pass")
            path = tmp_path / f"{name}.ipynb"
            notebook = nbformat.read(path, 4)
            code = IMPORTS.format(out=str(out), name=name, holder=STEP)
            notebook.cells.insert(0, nbformat.v4.new_code_cell(code))
            nbformat.write(notebook, path)
        return out

    return write


STEPS = [Step(Stage(name)) for name in ("first", "second", "third")]


def test_the_next_notebooks_kernel_imports_while_one_is_at_work(small_run, series_of_three):
    out = series_of_three()
    make, _, _ = small_run
    make().run(STEPS)
    told = [line.split() for line in out.read_text().splitlines()]
    by_kernel = {}
    for name, step, pid in told:
        by_kernel.setdefault(pid, []).append((name, step))
    assert sorted(by_kernel.values()) == [
        [("first", "first")],
        [("second", "first"), ("second", "second")],  # during the step before, and in its own
        [("third", "second"), ("third", "third")],
    ]


def test_a_kernel_that_waits_ends_with_a_run_that_fails(small_run, series_of_three):
    series_of_three(fails=True)
    make, _, _ = small_run
    with pytest.raises(NotebookError, match="second failed"):
        make().run(STEPS)
    assert not kernels._waiting and not kernels_here()


@pytest.mark.parametrize(("gpus", "expected"), [([], ""), ([T4], "third")])
def test_a_kernel_imports_beside_folds_where_there_is_a_gpu(
    small_run, console, monkeypatch, gpus, expected
):
    """On a CPU, folds need the host's memory."""
    make, _, _ = small_run
    ahead = {}

    def execute(self, step, archived, progress, process, following):
        ahead[step.name] = following

    monkeypatch.setattr(Attempts, "execute", execute)
    monkeypatch.setattr(runner, "find_gpus", lambda: gpus)
    monkeypatch.setattr(runner, "fold_environments", lambda *args: [{}, {}])
    folds = Stage("folds", per_fold=True)
    make().run([STEPS[0], Step(folds, 0), Step(folds, 1), STEPS[2]])
    assert ahead == {"first": "", "folds-fold0": "", "folds-fold1": expected, "third": ""}


def test_a_failing_import_is_the_notebooks_error(waiting_kernels, tmp_path, capfd):
    waiting_kernels("import no_such_module", 1)
    with pytest.raises(NotebookError, match="No module named 'no_such_module'"):
        execute("imports", tmp_path / "archive" / "imports.ipynb", {})
    assert "no_such_module" not in "".join(capfd.readouterr())


def test_a_kernel_that_has_died_while_it_waited_is_replaced(waiting_kernels, look):
    first, second = waiting_kernels("import wave", 2)
    psutil.Process(first).kill()
    assert look("step")[0] == second


def test_kernels_that_nobody_took_end_with_their_process(waiting_kernels, tmp_path):
    """One that still imports does not look whether its parent is there."""
    waiting_kernels("import time; time.sleep(600)", 0)
    with NotebookProcess({}) as process:
        process.run(kernels.start_kernels, tmp_path / "imports.ipynb", 2)
        started = kernels_here()
        assert len(started) == 2
    _, alive = psutil.wait_procs(started, PATIENCE)
    assert not alive


ENDS = """
import os, sys
from pathlib import Path
from vqa_utils.running.notebooks import kernels
kernels.start_kernels(Path(sys.argv[1]), 1)
print(kernels._waiting[0].provisioner.pid, flush=True)
sys.stdin.read()
"""


def test_a_kernel_that_imports_ends_with_a_process_that_is_killed(waiting_kernels, tmp_path):
    """ipykernel looks for its parent only after the imports."""
    waiting_kernels("import time; time.sleep(600)", 0)
    parent = subprocess.Popen(
        [sys.executable, "-c", ENDS, str(tmp_path / "imports.ipynb")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    kernel = psutil.Process(int(parent.stdout.readline()))
    deadline = time.monotonic() + PATIENCE
    while len(kernel.threads()) < 2:  # it imports by now, and looks
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    parent.kill()
    parent.communicate()
    assert not psutil.wait_procs([kernel], PATIENCE)[1]


ODD = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "MPLBACKEND": "Agg",
}
DRAWS = """
import os
import matplotlib.pyplot as plt
from accelerate import PartialState
from pathlib import Path
state = PartialState(cpu=True)
assert (state.num_processes, state.process_index) == (1, 0)
Path(OUT).write_text(" ".join(name for name in ODD if name in os.environ and name != "MPLBACKEND"))
plt.plot([1, 2])
plt.show()
"""


def test_a_launchers_environment_and_matplotlibs_backend_change_nothing(
    small_run, notebooks, monkeypatch
):
    make, paths, _ = small_run
    for name, value in ODD.items():
        monkeypatch.setenv(name, value)
    out = paths.folder / "out.txt"
    notebooks("draws", f"OUT, ODD = {str(out)!r}, {list(ODD)!r}" + DRAWS)
    make().run([Step(Stage("draws", writes=("out.txt",)))])
    assert out.read_text() == ""
    assert "image/png" in (paths.notebooks / "draws.ipynb").read_text()


def test_a_kernel_spec_of_another_python_is_passed_over(notebooks, monkeypatch, tmp_path):
    """One of this name in a user's folders comes first in Jupyter."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = ["/another/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": argv, "display_name": "Python 3", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    out = tmp_path / "out.txt"
    notebooks("tells", f"import sys; open({str(out)!r}, 'w').write(sys.executable)")
    execute("tells", tmp_path / "archive" / "tells.ipynb", {})
    assert out.read_text() == sys.executable

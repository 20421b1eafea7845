"""Small notebooks on the nodes of a real cluster, with the runs folder shared and without."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import ray
from nbformat.v4 import new_code_cell, new_notebook
from ray_nodes import ALL, OWN, SHARED, node_at_work, two_nodes
from stand_in import KERNEL

from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.artifacts.stop import TRAINING, ask_to_stop, end_phase, last_life, stoppable
from vqa_utils.running.cluster.node_process import NodeProcess
from vqa_utils.running.notebooks.execution import NotebookError, NotebookStopped, execute
from vqa_utils.running.notebooks.processes import KernelDied, NodeLost

pytestmark = pytest.mark.slow

PATIENCE = 60  # seconds until a wait in vain fails
BEGINS = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from vqa_utils.artifacts.manifest import write_manifest
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.stop import TRAINING, stop_if_asked
paths = RunPaths(run_id)
fold = paths.fold(fold).folder
"""
WORKS = """
(fold / "pid").write_text(str(os.getpid()))
while True:
    time.sleep(0.05)
    stop_if_asked(TRAINING)
"""


@pytest.fixture(scope="module", params=[SHARED, OWN] if ALL else [OWN])
def cluster(request):
    """Two nodes; `own`: without the driver's folder of runs."""
    with two_nodes(VQA_RUNS_DIR="" if request.param == "shared" else "/nowhere") as cluster:
        cluster.shares = request.param == "shared"
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    paths = RunPaths("small")
    paths.fold(0).folder.mkdir(parents=True)
    (paths.folder / "folds.csv").write_text("id\n")
    (paths.fold(0).folder / "config.json").write_text("{}")
    with stoppable(paths):
        yield paths


@pytest.fixture
def run(cluster, paths, tmp_path):
    """Executes cells on a node as a fold's notebook."""

    def run(code):
        parameters = new_code_cell(
            "run_id: str = ''  # run\nfold: int = 0  # fold", metadata={"tags": ["parameters"]}
        )
        source = tmp_path / "03_train_fold.ipynb"
        cells = [parameters, new_code_cell(BEGINS), new_code_cell(code)]
        nbformat.write(new_notebook(cells=cells, metadata=KERNEL), source)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vqa_utils.running.notebooks.execution.NOTEBOOKS", tmp_path)
            archived = paths.notebooks / "03_train_fold-fold0.ipynb"
            execute(source.stem, archived, {"run_id": "small", "fold": 0}, NodeProcess(gpus=0))

    return run


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def archived(paths):
    return (paths.notebooks / "03_train_fold-fold0.ipynb").read_text()


def test_a_fold_finds_its_inputs_and_its_files_come_back(run, paths, cluster):
    run(
        "assert (paths.folder / 'folds.csv').exists() and (fold / 'config.json').exists()\n"
        "(fold / 'adapter').mkdir()\n"
        "(fold / 'adapter' / 'weights').write_bytes(bytes(range(256)))\n"
        "(fold / 'where').write_text(str(paths.folder))"
    )
    assert (paths.fold(0).adapter / "weights").read_bytes() == bytes(range(256))
    where = Path((paths.fold(0).folder / "where").read_text())
    assert (where == paths.folder) == cluster.shares
    assert cluster.shares or not where.exists(), "the node's own copy is deleted"
    assert '"exception": null' in archived(paths)
    assert not list((paths.lock.parent).glob("shared-*"))


def test_an_error_arrives_with_its_notebook(run, paths):
    with pytest.raises(NotebookError) as error:
        run("raise ValueError(f'no such picture in {paths.folder}')")
    for text in ("03_train_fold-fold0 failed: ValueError: no such picture", str(paths.notebooks)):
        assert text in str(error.value)
    assert "no such picture" in archived(paths)
    assert error.value.out_of_memory is None


def test_memory_that_ran_out_is_told_with_its_gpu(run):
    with pytest.raises(NotebookError) as error:
        run("class OutOfMemoryError(Exception): pass\nraise OutOfMemoryError('on GPU 1')")
    assert error.value.out_of_memory.gpu == 1


def test_what_is_whole_comes_back_while_a_fold_is_at_work(run, paths):
    """Its log and its last whole checkpoint; and the next attempt finds them."""
    begins = (
        "folder = fold / 'checkpoints' / 'key'\n"
        "for step in (1, 2, 3):\n"
        "    (folder / f'checkpoint-{step}').mkdir(parents=True)\n"
        "    (folder / f'checkpoint-{step}' / 'state').write_text('x' * step)\n"
        "    if step < 3: write_manifest(folder / f'checkpoint-{step}')\n"
        "    (fold / 'train_log.csv').write_text('step')\n"
        "    time.sleep(3)\n"
        "    if step == 2:\n"
        "        for file in (folder / 'checkpoint-1').iterdir(): file.unlink()\n"
    )
    with pytest.raises(KernelDied, match="SIGKILL"):
        run(f"{begins}time.sleep(3)\nos.kill(os.getpid(), 9)")
    checkpoints = paths.fold(0).checkpoints / "key"
    assert (checkpoints / "checkpoint-2" / "state").read_text() == "xx"
    assert (checkpoints / "checkpoint-2" / "manifest.json").exists()
    assert not list((checkpoints / "checkpoint-1").glob("*"))
    assert paths.fold(0).train_log.exists()
    run("assert (fold / 'checkpoints' / 'key' / 'checkpoint-2' / 'state').exists()")


@pytest.mark.parametrize("ask", [lambda: ask_to_stop(15), lambda: end_phase(TRAINING)])
def test_a_request_to_stop_reaches_the_node(run, paths, ask):
    def ask_later():
        try:
            wait_until(lambda: last_life("03_train_fold-fold0"))
        finally:
            ask()

    asking = threading.Thread(target=ask_later)
    asking.start()
    with pytest.raises(NotebookStopped):
        run(WORKS)
    asking.join()
    assert "StopRequested" in archived(paths)


def test_ctrl_c_asks_the_notebooks_to_stop(paths):
    NodeProcess(gpus=0).interrupt()
    assert Path(os.environ["VQA_STOP_FILE"]).read_text() == str(int(signal.SIGINT))


def test_a_run_that_is_stopped_waits_for_no_place(cluster, paths):
    ask_to_stop(signal.SIGTERM)
    process = NodeProcess(gpus=8)  # of which there is none
    parameters = {"run_id": "small", "fold": 0}
    with pytest.raises(NotebookStopped):
        process.run(print, paths.folder, paths.notebooks / "03_train_fold-fold0.ipynb", parameters)


def test_a_process_that_dies_on_its_node_is_no_lost_node(run):
    with pytest.raises(KernelDied) as error:
        run("os.kill(os.getppid(), 9); time.sleep(60)")
    assert not isinstance(error.value, NodeLost)


DRIVER = """
import sys
from pathlib import Path
import ray
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.stop import stoppable
from vqa_utils.running.cluster.node_process import NodeProcess
from vqa_utils.running.notebooks import execution
execution.NOTEBOOKS = Path({folder!r})
ray.init(address={address!r}, log_to_driver=False)
paths = RunPaths("small")
with stoppable(paths):
    archived = paths.notebooks / "03_train_fold-fold0.ipynb"
    parameters = {{"run_id": "small", "fold": 0}}
    execution.execute("03_train_fold", archived, parameters, NodeProcess(gpus=0))
"""


def test_a_killed_driver_leaves_no_notebook_at_work(run, cluster, paths, tmp_path):
    run("pass")  # writes the notebook's file
    source = tmp_path / "03_train_fold.ipynb"
    notebook = nbformat.read(source, 4)
    pid_file = tmp_path / "pid"
    notebook.cells[-1].source = WORKS.replace('fold / "pid"', f"Path({str(pid_file)!r})")
    nbformat.write(notebook, source)
    code = DRIVER.format(folder=str(tmp_path), address=cluster.address)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
    wait_until(lambda: pid_file.exists() and pid_file.read_text())
    kernel = psutil.Process(int(pid_file.read_text()))
    driver.kill()
    driver.wait()
    assert not psutil.wait_procs([kernel], PATIENCE)[1]


@pytest.mark.in_order
def test_a_lost_node_is_told_from_a_process_that_died(run, cluster, paths):
    """The last test: a cluster loses one of its nodes."""

    def lose_node():
        try:
            wait_until(lambda: last_life("03_train_fold-fold0"))
            node = node_at_work(cluster, "03_train_fold-fold0")
            cluster.remove_node(node, allow_graceful=False)
        except (AssertionError, AttributeError):  # else the notebook would never end
            ask_to_stop(signal.SIGTERM)
            raise

    losing = threading.Thread(target=lose_node)
    losing.start()
    with pytest.raises(NodeLost, match="03_train_fold-fold0: its node was lost"):
        run(WORKS)
    losing.join()
    assert (paths.fold(0).folder / "pid").exists(), "what it had written came back before"
    run("(fold / 'out').write_text('on the other node')")
    assert (paths.fold(0).folder / "out").exists()
    shutil.rmtree(paths.folder)

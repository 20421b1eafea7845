"""The series on a real cluster of two nodes: as on one machine, and though a node is lost."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import psutil
import pytest
from korean_challenge import write_korean_challenge
from ray_nodes import ALL, OWN, SHARED, node_at_work, two_nodes

from vqa_utils.artifacts.files import sha256
from vqa_utils.artifacts.paths import ROOT

pytestmark = pytest.mark.slow

SETTINGS = ["--set", "n_folds=2", "--set", "epochs=4", "--set", "micro_batch=2"]
SETTINGS += ["--set", "accumulation=2", "--set", "baselines=false"]
PATIENCE = 300  # seconds for a moment that does not come
RESULTS = ("fold*/adapter/adapter_model.safetensors", "fold*/probs_*.csv", "submission_*.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_korean_challenge(tmp_path_factory.mktemp("korean") / "data", train=16, test=5)


@pytest.fixture
def cluster(request):
    with two_nodes(VQA_RUNS_DIR="" if request.param == SHARED else "/nowhere") as cluster:
        yield cluster


def of_kinds(*kinds):
    return pytest.mark.parametrize("cluster", [SHARED, OWN] if ALL else kinds, indirect=True)


def started(folder, runs, *arguments):
    command = [sys.executable, "run_all.py", "--data", str(folder), "--run-id", "r", *arguments]
    environment = {**os.environ, "VQA_RUNS_DIR": str(runs), "OMP_NUM_THREADS": "1"}
    log = (runs.parent / f"{runs.name}.log").open("a")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def output(runs):
    return (runs.parent / f"{runs.name}.log").read_text()


def on(cluster):
    return [*SETTINGS, "--executor", "ray", "--address", cluster.address]


def results(run):
    files = [path for name in RESULTS for path in run.glob(name)]
    return {str(path.relative_to(run)): sha256(path) for path in files}


@pytest.fixture(scope="module")
def on_one_machine(folder, tmp_path_factory):
    """The results without Ray."""
    runs = tmp_path_factory.mktemp("alone") / "runs"
    runs.mkdir()
    assert started(folder, runs, *SETTINGS).wait() == 0, output(runs)
    found = results(runs / "r")
    assert len(found) == 7
    return found


def wait_until(condition, process):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not ALL, reason="each night")
@of_kinds(SHARED)
def test_folds_on_two_nodes_give_the_same_bits(cluster, folder, on_one_machine, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    assert started(folder, runs, *on(cluster)).wait() == 0, output(runs)
    assert results(runs / "r") == on_one_machine
    assert "2 folds at a time at the most" in output(runs)
    first, second = (clock_of(runs / "r", fold) for fold in (0, 1))
    assert max(first["start_time"], second["start_time"]) < min(
        first["end_time"], second["end_time"]
    ), "both were at work at a time, on nodes with one place each"
    process = started(folder, runs, "--resume", *on(cluster))
    assert process.wait() == 0
    assert output(runs).count("reused") == 8


def clock_of(run, fold):
    notebook = nbformat.read(run / "notebooks" / f"03_train_fold-fold{fold}.ipynb", 4)
    return notebook.metadata["papermill"]


@of_kinds(OWN)
def test_a_lost_nodes_fold_goes_on_from_its_checkpoint(cluster, folder, on_one_machine, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    process = started(folder, runs, *on(cluster))

    def checkpointed():
        whole = [path.parts[-5] for path in runs.glob("r/fold*/checkpoints/*/*/manifest.json")]
        return whole[0] if whole else None

    wait_until(checkpointed, process)
    fold = checkpointed()
    node = node_at_work(cluster, f"03_train_fold-{fold}")
    killed = time.time()
    cluster.remove_node(node, allow_graceful=False)
    assert process.wait() == 0, output(runs)
    assert "its node was lost" in output(runs)
    log = pd.read_csv(runs / "r" / fold / "train_log.csv")
    assert log["ended"].iloc[0] < killed < log["ended"].iloc[-1], "it went on, not anew"
    assert (runs / "r" / "notebooks" / f"03_train_fold-{fold}-died1.ipynb").exists()
    assert results(runs / "r") == on_one_machine


@pytest.mark.skipif(not ALL, reason="each night")
@pytest.mark.parametrize(
    ("cluster", "number"),
    [(SHARED, signal.SIGTERM), (OWN, signal.SIGINT)],
    indirect=["cluster"],
)
def test_a_signal_saves_the_folds_and_leaves_no_task(
    cluster, folder, tmp_path, number, on_one_machine
):
    runs = tmp_path / "runs"
    runs.mkdir()
    process = started(folder, runs, *on(cluster))
    logs = ["r/fold0/train_log.csv", "r/fold1/train_log.csv"]
    wait_until(lambda: all((runs / log).exists() for log in logs), process)
    process.send_signal(number)
    assert process.wait(PATIENCE) == 128 + number, output(runs)
    assert "--resume" in output(runs)
    names = [" ".join(each.cmdline()) for each in psutil.Process().children(recursive=True)]
    assert not [name for name in names if "ipykernel" in name or "OnNode" in name]
    assert list(runs.glob("r/fold*/checkpoints/*/*/manifest.json"))
    assert started(folder, runs, "--resume", *on(cluster)).wait() == 0, output(runs)
    assert results(runs / "r") == on_one_machine


@pytest.mark.skipif(not ALL, reason="each night")
@pytest.mark.parametrize("cluster", [SHARED], indirect=True)
def test_a_fold_that_fails_is_named_with_its_notebook(cluster, folder, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    arguments = on(cluster)
    first = started(folder, runs, *SETTINGS, "--only", "02_folds")
    assert first.wait() == 0, output(runs)
    failing = ["--resume", "--only", "03_train_fold", "--folds", "1", "--cell-timeout", "1s"]
    assert started(folder, runs, *failing, *arguments).wait() == 1
    notebook = runs / "r" / "notebooks" / "03_train_fold-fold1.ipynb"
    assert "03_train_fold-fold1: a cell took longer than 1 s" in output(runs)
    assert str(notebook) in output(runs).replace("\n", "")
    assert notebook.exists()

"""Kernels that are forks of one process, which has imported for all of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from nbclient.util import run_sync

from vqa_utils.artifacts.paths import NOTEBOOKS, ROOT
from vqa_utils.planning.machine.gpus import Gpu
from vqa_utils.running.notebooks import forked_kernels as forking
from vqa_utils.running.notebooks.forked_kernels import VARIABLE, forked_kernels
from vqa_utils.running.notebooks.kernels import QUIET, end_kernel, end_of, first_line, new_kernel

pytestmark = pytest.mark.slow
TWO = [{"OMP_NUM_THREADS": "1", "OF_A_FOLD": "yes"}] * 2
SERIES = [NOTEBOOKS / "03_train_fold.ipynb", NOTEBOOKS / "04_infer.ipynb"]
PATIENCE = 60  # seconds


@pytest.fixture(scope="module")
def environments():
    with forked_kernels(TWO, SERIES) as environments:
        yield environments


@pytest.fixture
def server(environments, monkeypatch):
    """Gives this process a server; returns its process number."""
    for name, value in environments[0].items():
        monkeypatch.setenv(name, value)
    forking._connected.cache_clear()
    yield forking.parent_of_kernels()  # which waits until it has imported
    forking._connected.cache_clear()


@contextlib.contextmanager
def started(*lines):
    """A kernel of this process, and a function that runs code in it and returns what it prints."""
    kernel = new_kernel()
    run_sync(kernel.start_kernel)(cwd=str(NOTEBOOKS), extra_arguments=[QUIET, first_line(), *lines])
    client = kernel.client()
    client.start_channels()
    run_sync(client.wait_for_ready)(timeout=PATIENCE)

    def run(code, timeout=PATIENCE):
        said = []

        def hear(message):
            content = message["content"]
            said.append(content.get("text") or content.get("data", {}).get("text/plain", ""))

        run_sync(client.execute_interactive)(code, timeout=timeout, output_hook=hear)
        return "".join(said).strip()

    try:
        yield kernel, run
    finally:
        client.stop_channels()
        end_kernel(kernel)


def ended(*numbers):
    """Wait until no process has one of these numbers any more."""
    deadline = time.monotonic() + PATIENCE
    while any(psutil.pid_exists(number) for number in numbers):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_kernel_is_a_fork_with_the_servers_imports_and_its_own_surroundings(server, monkeypatch):
    monkeypatch.setenv("ONLY_HERE", "7")
    with started() as (kernel, run):
        assert run("import sys; print('vqa_utils.training.fold' in sys.modules)") == "True"
        assert psutil.Process(kernel.provisioner.pid).ppid() == server
        assert run("import os; print(os.environ['ONLY_HERE'], os.getcwd())") == f"7 {NOTEBOOKS}"
        assert run("import torch; print(torch.get_num_threads())") == "1"
        assert run("print(os.getpid() == os.getpgrp(), 'x' in dir())") == "True False"


def test_a_figure_is_shown_as_in_any_kernel(server):
    with started() as (_, run):
        assert run("import sys; print('matplotlib.pyplot' in sys.modules)") == "True"
        assert "figure" in run("import matplotlib.pyplot as plt; plt.plot([1, 2])").lower()


def test_kernels_share_the_memory_of_their_imports(server):
    with started() as (one, _), started() as (two, _):
        own = [
            psutil.Process(kernel.provisioner.pid).memory_full_info().uss for kernel in (one, two)
        ]
        together = psutil.Process(server).memory_full_info().rss
    assert max(own) < 0.25 * together


DROPS = """
import sys
import numpy as np
from vqa_utils.running.notebooks.fork_server import drop_files
def resident():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Rss:"))) // 1024
table = np.memmap(sys.argv[1], mode="r")
total = int(table.sum())
before = resident()
drop_files()
print(before - resident(), int(table.sum()) == total)
"""


def test_the_server_lets_go_of_files_that_it_has_read(tmp_path):
    file = tmp_path / "library"
    file.write_bytes(os.urandom(2**20) * 64)
    answer = subprocess.run(
        [sys.executable, "-c", DROPS, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    dropped, is_same = answer.stdout.split()
    assert int(dropped) > 50 and is_same == "True", "MiB of the file's 64"


@pytest.mark.parametrize(
    ("code", "end"),
    [("os.kill(os.getpid(), 9)", "signal 9 (SIGKILL)"), ("os._exit(3)", "exit status 3")],
)
def test_how_a_kernel_has_ended_is_known(server, code, end):
    with started() as (kernel, run):
        with contextlib.suppress(Exception):
            run(f"import os; {code}", timeout=2)  # for an answer that does not come
        assert ended(kernel.provisioner.pid)
        assert end_of(kernel) == end


def test_ctrl_c_of_the_terminal_leaves_the_server_and_an_interrupt_reaches_the_kernel(server):
    os.kill(server, signal.SIGINT)
    os.kill(server, signal.SIGTERM)
    with started() as (_, run):
        code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
        assert run(code) == "True"
        assert run("print(signal.getsignal(signal.SIGTERM) == signal.SIG_IGN)") == "True"


CLIENT = """
import os, sys, time
from nbclient.util import run_sync
from vqa_utils.running.notebooks.kernels import QUIET, first_line, new_kernel
kernel = new_kernel()
run_sync(kernel.start_kernel)(extra_arguments=[QUIET, first_line()])
print(kernel.provisioner.pid, flush=True)
time.sleep(600)
"""


def test_a_kernel_ends_with_the_process_that_runs_its_notebook(server):
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as client:
        number = int(client.stdout.readline())
        assert psutil.Process(number).ppid() == server
        client.kill()
    assert ended(number)


DRIVER = """
import sys
from vqa_utils.running.notebooks.forked_kernels import VARIABLE, forked_kernels
with forked_kernels([{}], []) as environments:
    print(environments[0][VARIABLE], flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["kill", "close"])
def test_all_kernels_end_with_the_driver(end, monkeypatch):
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        name = driver.stdout.readline().strip()
        monkeypatch.setenv(VARIABLE, name)
        forking._connected.cache_clear()
        with started() as (kernel, _):
            numbers = [int(name.split()[0]), kernel.provisioner.pid]
            if end == "kill":
                driver.kill()
            else:
                driver.stdin.close()
            assert ended(*numbers)
            assert end_of(kernel).startswith("signal 9")
    forking._connected.cache_clear()


def test_where_the_server_has_gone_a_kernel_starts_as_ever(monkeypatch):
    with forked_kernels([{}], []) as environments:
        name = environments[0][VARIABLE]
        monkeypatch.setenv(VARIABLE, name)
        forking._connected.cache_clear()
        assert forking.parent_of_kernels() == int(name.split()[0])
        os.kill(int(name.split()[0]), signal.SIGKILL)
        assert ended_or_zombie(int(name.split()[0]))
        assert forking.parent_of_kernels() == os.getpid()
        with started() as (kernel, run):
            assert run("print(6 * 7)") == "42"
            assert psutil.Process(kernel.provisioner.pid).ppid() == os.getpid()
    forking._connected.cache_clear()


def ended_or_zombie(number):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_notebook_that_cannot_be_imported_leaves_a_server(tmp_path, monkeypatch):
    """It fails in its own kernel, with its own words."""
    broken = tmp_path / "broken.ipynb"
    cell = {"cell_type": "code", "metadata": {}, "source": ["!pip list"]}
    broken.write_text(json.dumps({"cells": [cell]}))
    with forked_kernels([{}], [broken]) as environments:
        monkeypatch.setenv(VARIABLE, environments[0][VARIABLE])
        forking._connected.cache_clear()
        assert forking.parent_of_kernels() == int(environments[0][VARIABLE].split()[0])
    forking._connected.cache_clear()


@pytest.mark.parametrize(
    "environments", [[], [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]]
)
def test_without_folds_side_by_side_or_for_unlike_ones_there_is_no_server(environments):
    with forked_kernels(environments, SERIES) as found:
        assert found == environments


def test_on_a_gpu_there_is_no_server(monkeypatch):
    monkeypatch.setattr(forking, "find_gpus", lambda: [Gpu("Tesla T4", 14.7)])
    with forked_kernels(TWO, SERIES) as found:
        assert found == TWO

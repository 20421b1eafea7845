"""A base that is loaded once for a run, and what becomes of it when something ends too early."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.config import to_dict
from vqa_utils.errors import RunError
from vqa_utils.planning.gpus import T4
from vqa_utils.presets import preset
from vqa_utils.sharing import shared_base as of_base
from vqa_utils.sharing.shared_base import shared_base

PATIENCE = 60  # seconds until a wait in vain fails


@pytest.fixture
def run(tmp_path, monkeypatch, korean_folder):
    """A run's paths and settings, written as its driver writes them."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    paths = RunPaths("shared")

    def with_settings(**changes):
        config = preset("demo", **{"data": str(korean_folder), "folds_at_once": 2, **changes})
        write_json(paths.config, to_dict(config))
        return paths, config

    return with_settings


def lender(monkeypatch, code):
    """Puts a few lines of Python in place of the lender."""
    monkeypatch.setattr(of_base, "LENDER", (sys.executable, "-c", code))


def test_without_a_gpu_a_base_is_lent_where_it_is_asked_for(run, console):
    for changes, folds in (({"folds_at_once": "auto"}, 3), ({"folds_at_once": 1}, 3), ({}, 1)):
        with shared_base(*run(**changes), folds, console) as environments:
            assert environments == []


@pytest.mark.slow
def test_a_lender_ends_once_it_has_lent(run, console):
    paths, config = run()
    with shared_base(paths, config, 3, console) as environments:
        assert len(environments) == 2 and environments[0] == environments[1]
        children = [child.cmdline() for child in psutil.Process().children()]
        assert not any("vqa_utils.model.lending.lender" in words for words in children)
    assert "loaded once" in console.file.getvalue()
    assert not (paths.folder / "lender.log").exists()


@pytest.mark.slow
def test_a_base_that_cannot_be_loaded_is_named_with_its_log(run, console, tmp_path):
    paths, config = run(model=str(tmp_path))
    with (
        pytest.raises(RunError, match=str(tmp_path)) as error,
        shared_base(paths, config, 3, console),
    ):
        pass
    assert "runs/shared/lender.log" in str(error.value)
    assert "Traceback" in (paths.folder / "lender.log").read_text()


def test_a_lender_that_dies_is_told(run, console, monkeypatch):
    lender(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RunError, match="ended without a word"), shared_base(*run(), 3, console):
        pass


REFUSES = (
    f"import sys; print('cuMemCreate: not supported', file=sys.stderr); sys.exit({of_base.REFUSED})"
)


def test_a_machine_that_cannot_share_memory(run, console, monkeypatch):
    lender(monkeypatch, REFUSES)
    with (
        pytest.raises(RunError, match=r"folds_at_once=2.*cuMemCreate.*folds_at_once=1"),
        shared_base(*run(), 3, console),
    ):
        pass
    # One at a time, each fold may as well load the base for itself
    monkeypatch.setattr(of_base, "find_gpus", lambda: [T4, T4])
    monkeypatch.setattr(of_base, "LEAST_LENT", 0)
    one = run(folds_at_once=1, max_memory=("14GB", "14GB"))
    with shared_base(*one, 3, console) as environments:
        assert environments == []
    assert "cuMemCreate" in console.file.getvalue()


def test_a_small_base_is_not_worth_a_lender(run, console, monkeypatch):
    monkeypatch.setattr(of_base, "find_gpus", lambda: [T4, T4])
    one = run(folds_at_once=1, max_memory=("14GB", "14GB"))
    with shared_base(*one, 3, console) as environments:
        assert environments == []


ENDS = """
import os, threading
from multiprocessing.connection import Connection
from vqa_utils.model.lending.lender import end_with
import time
threading.Thread(target=end_with, args=(Connection(int(sys.argv[1])),), daemon=True).start()
time.sleep(600)
"""
DRIVER = """
import sys
from multiprocessing import Pipe
import subprocess
ours, theirs = Pipe()
lender = subprocess.Popen([sys.executable, "-c", "import sys" + {ends!r}, str(theirs.fileno())],
                          pass_fds=[theirs.fileno()])
theirs.close()
print(lender.pid, flush=True)
lender.wait()
"""


def is_there(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until_gone(*pids):
    deadline = time.monotonic() + PATIENCE
    while any(is_there(pid) for pid in pids):
        assert time.monotonic() < deadline, [pid for pid in pids if is_there(pid)]
        time.sleep(0.05)


@pytest.mark.slow
def test_a_lender_ends_with_its_driver():
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(ends=ENDS)], cwd=ROOT, stdout=subprocess.PIPE
    )
    lender_pid = int(driver.stdout.readline())
    assert is_there(lender_pid)
    driver.kill()
    driver.wait()
    wait_until_gone(lender_pid)


SLEEPS = "import os, time; open({file!r}, 'w').write(str(os.getpid())); time.sleep(600)"
RUNS = """
import sys
from pathlib import Path
from vqa_utils.running import execution
execution.NOTEBOOKS = Path({folder!r})
process = execution.process_with({{}})
process.submit(execution._execute, execution.NOTEBOOKS / "sleeps.ipynb", Path({archived!r}), {{}}).result()
"""


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process(notebooks, tmp_path):
    pid_file = tmp_path / "kernel"
    notebooks("sleeps", SLEEPS.format(file=str(pid_file)))
    script = tmp_path / "driver.py"  # workers import their parent's main module
    code = RUNS.format(folder=str(tmp_path), archived=str(tmp_path / "archive" / "sleeps.ipynb"))
    indented = code.strip().replace("\n", "\n    ")
    script.write_text(f"if __name__ == '__main__':\n    {indented}\n")
    driver = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + PATIENCE
    while not (pid_file.exists() and pid_file.read_text()):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = [child.pid for child in psutil.Process(driver.pid).children(recursive=True)]
    assert int(pid_file.read_text()) in children
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until_gone(*children)

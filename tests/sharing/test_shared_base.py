"""A base that is loaded once for a run, and what becomes of it when something ends too early."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe

import psutil
import pytest

import run_all
from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.artifacts.stop import file_to_stop, stoppable
from vqa_utils.config import to_dict
from vqa_utils.planning.machine.gpus import T4
from vqa_utils.planning.plan import plan_for, resolve_for_machine
from vqa_utils.presets import preset
from vqa_utils.sharing import client, lender
from vqa_utils.sharing import shared_base as of_base
from vqa_utils.sharing.lender import LenderError, lender_ahead, new_lender
from vqa_utils.sharing.shared_base import ALONE, early_lender, shared_base

PATIENCE = 60  # seconds until a wait in vain fails


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Other GPUs than a test names would have plans of their own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


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


@pytest.fixture
def as_a_fold(monkeypatch):
    """Makes this process one of a run's folds."""

    def take(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        client._connection.cache_clear()

    yield take
    client._connection.cache_clear()


def test_without_a_gpu_a_base_is_lent_where_it_is_asked_for(run, console):
    for changes, folds in (({"folds_at_once": "auto"}, 3), ({"folds_at_once": 1}, 3), ({}, 1)):
        paths, config = run(**changes)
        with shared_base(paths, config, [config] * folds, console, None) as sharing:
            assert sharing is ALONE


@pytest.mark.slow
def test_a_lender_ends_once_it_has_lent(run, console, as_a_fold):
    paths, config = run()
    (paths.folder / "lender.log").write_text("of an earlier failure")
    with shared_base(paths, config, [config] * 3, console, None) as sharing:
        first, second = sharing.environments
        assert first == second and sharing.seats.count == 2
        as_a_fold(first)
        sharing.seats.take("a fold")
        assert client.lent_base("another") is None, "once the base is there"
        children = [child.cmdline() for child in psutil.Process().children()]
        assert not any("vqa_utils.model.lending.lender" in words for words in children)
    assert "loaded once" in console.file.getvalue()
    assert not (paths.folder / "lender.log").exists()


@pytest.mark.slow
def test_a_base_that_cannot_be_lent_is_loaded_by_each_fold_and_the_reason_told(
    run, console, tmp_path, as_a_fold
):
    """There, what is wrong meets the ladder, or fails with the notebook's own error."""
    paths, config = run(model=str(tmp_path))
    with shared_base(paths, config, [config] * 3, console, None) as sharing:
        as_a_fold(sharing.environments[0])
        assert client.lent_base("any") is None
        sharing.seats.take("a fold")
        assert sharing.seats.count == 1, "each one's own base, so one after the other"
    said = console.file.getvalue()
    assert "lent 0 times" not in said
    assert "Error: " in said and str(tmp_path) in said and "shared/lender.log" in said
    log = (paths.folder / "lender.log").read_text()
    assert "Traceback" in log and str(tmp_path) not in log and str(ROOT) not in log


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("import sys; sys.exit('cannot share memory: cuMemCreate')", "cuMemCreate"),
        ("raise ValueError('CUDA out of memory\\nCompile with TORCH_USE_CUDA_DSA')", "CUDA out of"),
        ("", "ended without a word"),
    ],
)
def test_the_last_words_of_a_lender_are_told(run, monkeypatch, code, said):
    monkeypatch.setattr(lender, "LENDER", (sys.executable, "-c", code))
    paths, _ = run()
    with pytest.raises(LenderError, match=said):
        new_lender(paths).wait_until_loaded()


# Programs that take a lender's place, with its arguments
HAS_LOADED = """
import sys, time
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
connection.send_bytes(b"loaded")
"""
LOADS_FOR_EVER = (sys.executable, "-c", "import time; time.sleep(600)")


def test_a_lender_starts_early_and_ends_where_none_is_needed(run, console, monkeypatch):
    monkeypatch.setattr(lender, "LENDER", LOADS_FOR_EVER)
    paths, config = run()
    with early_lender(paths, config, [config]) as early:
        assert early is None, "one fold alone"
    with early_lender(paths, config, [config] * 2) as early:
        process = early._process
        assert process.poll() is None
        # One of the two folds was found done since
        with shared_base(paths, config, [config], console, early) as sharing:
            assert sharing is ALONE and process.poll() == -signal.SIGKILL
    with early_lender(paths, config, [config] * 2) as early:
        process = early._process
    assert process.poll() == -signal.SIGKILL, "a notebook before the folds has failed"


def test_an_early_lender_is_the_one_that_lends(run, console, monkeypatch):
    monkeypatch.setattr(lender, "LENDER", LOADS_FOR_EVER)
    paths, config = run()
    with early_lender(paths, config, [config] * 2) as early:
        monkeypatch.setattr(of_base, "new_lender", None)  # a second one would fail
        with shared_base(paths, config, [config] * 2, console, early) as sharing:
            assert len(sharing.environments) == 2, "no more than folds"
            assert early._process.poll() is None
        assert early._process.poll() == -signal.SIGKILL
    assert "killed" not in console.file.getvalue(), "nobody waited for it"


def test_a_lender_that_was_started_ahead_is_the_one_that_loads(run, monkeypatch):
    monkeypatch.setattr(lender, "LENDER", LOADS_FOR_EVER)
    paths, config = run()
    with lender_ahead(True):
        (ahead,) = lender._ahead
        with early_lender(paths, config, [config] * 2) as early:
            assert early is ahead and not lender._ahead
        assert ahead._process.poll() == -signal.SIGKILL
    with lender_ahead(True):
        (unneeded,) = lender._ahead
        with early_lender(paths, config, [config]) as early:
            assert early is None, "one fold alone"
            assert unneeded._process.poll() == -signal.SIGKILL, "it holds no memory meanwhile"
    with pytest.raises(RuntimeError, match="refused"), lender_ahead(True):
        (unneeded,) = lender._ahead
        raise RuntimeError("refused")
    assert unneeded._process.poll() == -signal.SIGKILL
    with lender_ahead(False):
        assert not lender._ahead


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["folds_at_once=2"], 1),
        (["folds_at_once=1"], 0),
        (["folds_at_once=2", "--dry-run"], 0),
        (["folds_at_once=2", "--folds", "0"], 0),
        (["folds_at_once=2", "--only", "01_eda"], 0),
    ],
)
def test_a_run_starts_its_lender_before_it_is_checked(run, monkeypatch, words, count):
    monkeypatch.setattr(lender, "LENDER", LOADS_FOR_EVER)
    _, config = run()
    ahead = []
    monkeypatch.setattr(run_all, "run_steps", lambda *_: ahead.extend(lender._ahead))
    monkeypatch.setattr("sys.argv", ["run_all.py", "--data", config.data, "--set", *words])
    run_all.main()
    assert len(ahead) == count and not lender._ahead
    assert all(each._process.poll() == -signal.SIGKILL for each in ahead)


def test_a_lender_that_has_died_is_no_lender(run, monkeypatch):
    paths, _ = run()
    monkeypatch.setattr(lender, "LENDER", (sys.executable, "-c", ""))
    with lender_ahead(True):
        (dead,) = lender._ahead
        dead._process.wait()
        monkeypatch.setattr(lender, "LENDER", LOADS_FOR_EVER)
        alive = new_lender(paths)
        assert alive is not dead and alive.is_there
        alive.close()


@pytest.mark.slow
def test_a_lender_that_was_started_ahead_hears_that_its_run_is_to_stop(run, monkeypatch):
    code = (
        "import os, sys; from vqa_utils.model.lending import lender; "
        "lender.read_config = lambda paths: sys.exit(os.environ['VQA_STOP_FILE']); "
        "lender.main(sys.argv[1:])"
    )
    monkeypatch.setattr(lender, "LENDER", (sys.executable, "-c", code))
    paths, _ = run()
    with lender_ahead(True), stoppable(paths):
        found = new_lender(paths)
        with pytest.raises(LenderError, match=str(file_to_stop(paths))):
            found.wait_until_loaded()
        assert paths.lender_log.exists()
        found.close()
    assert paths.lender_log.exists(), "it has failed"


def test_a_lender_that_stops_with_its_run_is_no_failure(run, console, monkeypatch, as_a_fold):
    code = (
        "import sys; from vqa_utils.sharing.server import STOPPED; print('pictures', flush=True); "
        "sys.exit(STOPPED)"
    )
    monkeypatch.setattr(lender, "LENDER", (sys.executable, "-c", code))
    paths, config = run()
    with shared_base(paths, config, [config] * 2, console, None) as sharing:
        as_a_fold(sharing.environments[0])
        assert client.lent_base("any") is None, "folds wait no longer, and stop"
    assert not console.file.getvalue() and not paths.lender_log.exists()


def test_a_lender_that_is_stopped_leaves_no_log(run, monkeypatch):
    prints = "import time; print('loading', flush=True); time.sleep(600)"
    monkeypatch.setattr(lender, "LENDER", (sys.executable, "-c", prints))
    paths, _ = run()
    stopped = new_lender(paths)
    deadline = time.monotonic() + PATIENCE
    while not os.fstat(stopped._words.fileno()).st_size:  # it has printed
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not paths.lender_log.exists(), "a driver that is killed would leave it, with names in it"
    stopped.stop()
    with pytest.raises(LenderError):
        stopped.wait_until_loaded()
    stopped.close()
    assert not paths.lender_log.exists()


@pytest.mark.slow
def test_a_lender_without_a_driver_ends_without_a_word():
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [*lender.LENDER, str(theirs.fileno())],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
    ours.close()
    assert process.communicate(timeout=PATIENCE) == (None, b"") and process.returncode == 0


def test_folds_begin_while_pictures_are_encoded(run, console, monkeypatch):
    monkeypatch.setattr(lender, "LENDER", (sys.executable, "-c", HAS_LOADED + "time.sleep(600)"))
    paths, config = run()
    with shared_base(paths, config, [config] * 2, console, None) as sharing:
        taken = threading.Thread(target=sharing.seats.take, args=["a fold"], daemon=True)
        taken.start()
        taken.join(60)
        assert not taken.is_alive() and sharing.seats.count == 2


def test_a_lender_that_fails_with_the_pictures_leaves_folds_to_themselves(
    run, console, monkeypatch, as_a_fold
):
    code = HAS_LOADED + "raise OSError('a picture')"
    monkeypatch.setattr(lender, "LENDER", (sys.executable, "-c", code))
    paths, config = run()
    with shared_base(paths, config, [config] * 2, console, None) as sharing:
        as_a_fold(sharing.environments[0])
        assert client.lent_base("any") is None
        assert sharing.seats.count == 1
    assert "each fold loads the base for itself: OSError: a picture" in console.file.getvalue()


def lends(config, *folds):
    return of_base.lends(config, folds)


def test_a_base_is_lent_to_folds_that_need_it_where_it_is(monkeypatch):
    monkeypatch.setattr(of_base, "find_gpus", lambda: [T4, T4])
    monkeypatch.setattr("vqa_utils.planning.plan.find_gpus", lambda: [T4, T4])
    config = resolve_for_machine(preset("safe", folds_at_once=2), [T4, T4])
    assert lends(config, config, config)
    changes = [{"offload_experts": True, "max_memory": ("8GB", "8GB")}, {"image_side": 1024}]
    for change in changes:
        moved = dataclasses.replace(config, **change)
        assert not of_base.is_placed_alike(moved, config, [T4, T4]), change
        assert not lends(config, config, moved), change


def test_a_fold_that_gives_no_memory_back_does_not_stand_beside_those_that_do():
    limits = ("13.3GB", "13.3GB")
    roomy = preset("safe", folds_at_once=2, max_memory=limits, cache_features=True)
    config = resolve_for_machine(roomy, [T4, T4])
    smaller = config.with_micro_batch(8)
    plan, of_smaller = plan_for(config, [T4, T4]), plan_for(smaller, [T4, T4])
    assert plan.device_map == of_smaller.device_map
    assert plan.gives_back and not of_smaller.gives_back
    assert not of_base.is_placed_alike(smaller, config, [T4, T4])
    assert of_base.is_placed_alike(config, config, [T4, T4])


def test_a_small_base_is_not_worth_a_lender(monkeypatch):
    monkeypatch.setattr(of_base, "find_gpus", lambda: [T4, T4])
    one = preset("demo", folds_at_once=1, max_memory=("14GB", "14GB"))
    assert not lends(one, one, one)
    two = dataclasses.replace(one, folds_at_once=2)
    assert lends(two, two, two)


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
import threading
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
import threading
from pathlib import Path
from vqa_utils.running.notebooks import execution, processes
execution.NOTEBOOKS = Path({folder!r})
process = processes.NotebookProcess({{}})
execution.import_ahead("sleeps", process, 2)  # the second one waits
execution.execute("sleeps", Path({archived!r}), {{}}, process)
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
    assert len(children) == 4, "a process for notebooks, its resource tracker, two kernels"
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until_gone(*children)

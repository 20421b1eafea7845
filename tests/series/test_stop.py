"""What becomes of a run, its processes and its files when a signal asks it to stop."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from stand_in import KERNEL

import run_all
from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.artifacts.stop import (
    SCORING,
    TRAINING,
    VARIABLE,
    StopRequested,
    asked_by,
    end_phase,
    must_stop,
    stop_if_asked,
    stoppable,
)
from vqa_utils.errors import Stopped

pytestmark = pytest.mark.slow

PATIENCE = 60  # seconds until a wait in vain fails
SIGNALS = [signal.SIGTERM, signal.SIGHUP]
WORKS = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.stop import TRAINING, stop_if_asked
folder = RunPaths(run_id).fold(fold).folder
folder.mkdir(parents=True, exist_ok=True)
(folder / "pid").write_text(str(os.getpid()))
while True:
    time.sleep(0.05)
    if stops: stop_if_asked(TRAINING)
"""
DRIVER = """
import signal
import sys
from pathlib import Path
for number in {signals}:  # as from a terminal, whatever started the tests; nohup ignores SIGHUP
    signal.signal(number, signal.SIG_DFL)
from rich.console import Console
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.presets import preset
from vqa_utils.running import runner
from vqa_utils.running.notebooks import execution
from vqa_utils.running.stages import Stage, Step

if __name__ == "__main__":
    execution.NOTEBOOKS = Path({folder!r})
    runner.fold_environments = lambda config, folds: {environments!r}
    one = runner.Runner(RunPaths("r"), preset("demo", data={data!r}), Console(), reuse=True)
    stage = Stage("works", writes=("fold{{fold}}/out.txt",), per_fold=True, trains=True)
    if {ends}:  # once both folds are at work
        def look(now):
            if all((one.paths.fold(fold).folder / "pid").exists() for fold in (0, 1)):
                one.clock._end("training")
        one.clock.look = look
    try:
        one.run([Step(stage, fold) for fold in (0, 1)])
    except KeyboardInterrupt as stop:
        print("stopped", flush=True)
        sys.exit(128 + stop.number)
    print("left out:", *(step.name for step in one.clock.left_out), flush=True)
"""


def ignore_hangup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.fixture
def drive(tmp_path, monkeypatch, korean_folder):
    """Starts a run of two folds whose notebooks work until they are asked to stop; returns its process."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    started = []

    def start(environments, stops=True, ignores_hangup=False, ends=False):
        parameters = new_code_cell(
            "run_id: str = ''  # run\nfold: int = 0  # fold", metadata={"tags": ["parameters"]}
        )
        cells = [parameters, new_code_cell(f"stops = {stops}" + WORKS)]
        notebook = new_notebook(cells=cells, metadata=KERNEL)
        nbformat.write(notebook, tmp_path / "works.ipynb")
        script = tmp_path / "driver.py"
        given = {"folder": str(tmp_path), "data": str(korean_folder), "environments": environments}
        signals = [] if ignores_hangup else list(map(int, SIGNALS))
        script.write_text(DRIVER.format(**given, signals=signals, ends=ends))
        driver = subprocess.Popen(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=ignore_hangup if ignores_hangup else None,
        )
        started.append(driver)
        deadline = time.monotonic() + PATIENCE
        pids = [tmp_path / "runs" / "r" / f"fold{k}" / "pid" for k in range(len(environments) or 1)]
        while not all(pid.exists() and pid.read_text() for pid in pids):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        return driver, psutil.Process(driver.pid).children(recursive=True)

    yield start
    for driver in started:
        driver.kill()
        driver.wait()


def archived(tmp_path, fold):
    text = (tmp_path / "runs" / "r" / "notebooks" / f"works-fold{fold}.ipynb").read_text()
    return "StopRequested" in text and "--resume goes on from here" in text


@pytest.mark.parametrize("to_all", [False, True], ids=["driver", "all"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("environments", [[], [{}, {}]], ids=["in turn", "side by side"])
def test_a_signal_lets_notebooks_end_where_nothing_is_lost(
    drive, tmp_path, environments, number, to_all
):
    driver, children = drive(environments)
    for process in [*children, driver] if to_all else [driver]:
        process.send_signal(number)
    out, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 128 + number
    assert "stopped" in out
    assert not psutil.wait_procs(children, PATIENCE)[1]
    assert all(archived(tmp_path, fold) for fold in range(len(environments) or 1))
    assert not (tmp_path / "runs" / "r" / "fold1").exists() or environments, "none is begun"
    assert not list((tmp_path / "runs" / ".locks" / "stop").glob("*"))
    assert not list((tmp_path / "runs" / "r" / "stages").glob("*"))


def test_a_time_budget_lets_notebooks_end_where_nothing_is_lost(drive, tmp_path):
    driver, children = drive([{}, {}], ends=True)
    out, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0
    assert set(out.splitlines()[-1].split()[2:]) == {"works-fold0", "works-fold1"}
    assert not psutil.wait_procs(children, PATIENCE)[1]
    assert all(archived(tmp_path, fold) for fold in (0, 1))
    assert not list((tmp_path / "runs" / ".locks" / "stop").glob("*"))
    assert not list((tmp_path / "runs" / "r" / "stages").glob("*"))


def test_a_run_under_nohup_goes_on_when_the_terminal_closes(drive):
    driver, _ = drive([], ignores_hangup=True)
    driver.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert driver.poll() is None
    driver.terminate()
    assert driver.wait(PATIENCE) == 128 + signal.SIGTERM


LETS_GO = """
import sys
from vqa_utils.artifacts.stop import _let_go_of_the_terminal
sys.stdin.readline()
_let_go_of_the_terminal()
print("more", flush=True)
"""


def test_a_closed_terminal_is_written_to_no_more():
    master, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", LETS_GO], cwd=ROOT, stdin=subprocess.PIPE, stdout=terminal, text=True
    )
    os.close(terminal)
    os.close(master)
    process.communicate("\n", timeout=PATIENCE)
    assert process.returncode == 0


def test_a_second_signal_ends_a_run_that_does_not_stop(drive):
    driver, children = drive([{}, {}], stops=False)
    driver.terminate()
    time.sleep(1)
    assert driver.poll() is None
    driver.terminate()
    assert driver.wait(PATIENCE) == -signal.SIGTERM
    assert not psutil.wait_procs(children, PATIENCE)[1]


@pytest.mark.parametrize("environments", [[], [{}, {}]], ids=["in turn", "side by side"])
def test_a_killed_driver_takes_all_its_processes_with_it(drive, environments):
    driver, children = drive(environments, stops=False)
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(children, PATIENCE)
    assert not alive


def test_the_exit_status_names_the_signal_and_the_message_what_to_do(monkeypatch, capsys):
    def stops(args, console):
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("sys.argv", ["run_all.py", "--run-id", "r"])
    monkeypatch.setitem(run_all.COMMANDS, "run", stops)
    with pytest.raises(SystemExit) as end:
        run_all.main()
    assert end.value.code == 143
    assert "run_all.py --resume --run-id r goes on from here" in capsys.readouterr().out


def test_a_notebook_by_hand_is_asked_by_nobody(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert asked_by() is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "stop"))
    assert asked_by() is None
    (tmp_path / "stop").touch()
    assert asked_by() == signal.SIGTERM, "it is just being written"


def test_a_time_that_is_up_ends_its_phase_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    with stoppable(RunPaths("r")):
        assert not must_stop(TRAINING)
        end_phase(TRAINING)
        assert must_stop(TRAINING) and not must_stop(SCORING) and asked_by() is None
        with pytest.raises(StopRequested, match="training"):
            stop_if_asked(TRAINING)
        stop_if_asked(SCORING)
    with stoppable(RunPaths("r")):  # the next command's time is its own
        assert not must_stop(TRAINING)

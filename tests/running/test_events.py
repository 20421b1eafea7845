"""What `--json` and `--quiet` print: run_all.py in a process of its own, on the stand-in's notebooks."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout

import pytest
from rich.console import Console

import run_all
from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.errors import RunError, Stopped
from vqa_utils.running.terminal import live
from vqa_utils.running.terminal.console import make_console
from vqa_utils.running.terminal.events import tell, telling
from vqa_utils.running.terminal.live import follow, progress_lines

LOG = "step,max_steps,loss,seconds_per_step\n"
SCRIPT = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from stand_in import StandIn
from vqa_utils.running.notebooks import attempts
import run_all

stand_in = StandIn()
stand_in.broken |= set(filter(None, [{{broken!r}}]))
attempts.execute = stand_in.execute
from vqa_utils.running import runner
runner.fold_environments = lambda config, folds: []
if __name__ == "__main__":
    run_all.main()
"""


@pytest.fixture
def start(tmp_path, monkeypatch, korean_folder):
    """Runs a command line on the stand-in; `broken` names a run that fails in a training."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))

    def start(*words, broken=""):
        script = tmp_path / "run_all.py"
        script.write_text(SCRIPT.format(broken=broken), encoding="utf-8")
        settings = ["--data", str(korean_folder), "--set", "n_folds=2", "--set", "baselines=false"]
        given = settings if words[0].startswith("-") else []
        command = [sys.executable, str(script), *words, *given]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    return start


def events_of(done):
    """Parse every line of the standard output."""
    return [json.loads(line) for line in done.stdout.splitlines()]


def names(events):
    return [(event["event"], event.get("notebook", "")) for event in events]


def executed(*notebooks):
    both = []
    for notebook in notebooks:
        both += [("notebook_started", notebook), ("notebook_finished", notebook)]
    return both


@pytest.mark.slow
def test_every_line_is_an_event_in_the_order_of_the_run(start, tmp_path):
    done = start("--json", "--run-id", "r")
    assert done.returncode == 0, done.stderr
    events = events_of(done)
    folds = ["03_train_fold-fold0", "03_train_fold-fold1", "04_infer-fold0", "04_infer-fold1"]
    series = ["01_eda", "02_folds", *folds, "05_ensemble", "06_analysis"]
    assert names(events) == [("run_started", ""), *executed(*series), ("finished", "")]
    first, *_, last = events
    assert (first["run"], first["preset"]) == ("r", "demo")
    assert first["folder"] == str(tmp_path / "runs" / "r")
    assert last["accuracy"] == 0.75 and last["low"] < 0.75 < last["high"] and last["is_whole"]
    assert last["submission"].endswith("submission_ensemble.csv")
    assert last["page"] == str(RunPaths("r").page)
    assert last["next"][0] == "python run_all.py open --run-id r"
    assert all(event["seconds"] >= 0 for event in events if "seconds" in event)

    again = events_of(start("--json", "--run-id", "r", "--resume", "--folds", "0"))
    assert {event["event"] for event in again} == {"run_started", "notebook_reused", "finished"}


@pytest.mark.slow
def test_a_failure_is_an_event_and_the_exit_status(start):
    done = start("--json", "--run-id", "r", broken="r")
    *_, failed, error = events_of(done)
    assert done.returncode == 1 == error["exit_status"]
    assert (failed["event"], failed["notebook"]) == ("notebook_failed", "03_train_fold-fold0")
    assert error["event"] == "error" and error["message"] == failed["message"]
    assert "broken" in error["message"] and "broken" in done.stderr


@pytest.mark.slow
def test_a_command_that_is_refused_has_an_error_event_alone(start):
    done = start("--json", "--resume", "--run-id", "none")
    (error,) = events_of(done)
    assert done.returncode == 1 and error["event"] == "error" and "none" in error["message"]


@pytest.mark.slow
def test_quiet_leaves_the_end(start):
    done = start("--quiet", "--preset", "demo", "--run-id", "r")
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["score", "submission", "page", "next", "next"]
    assert "0.750 of 24 rows" in lines[0] and "95 % interval" in lines[0]
    part = start("--quiet", "--preset", "demo", "--run-id", "part", "--folds", "0")
    (following,) = [line for line in part.stdout.splitlines() if line.startswith("next")]
    assert "--resume --run-id part" in following


@pytest.mark.slow
def test_a_run_says_its_end_last(start):
    lines = start("--run-id", "r").stdout.splitlines()
    heads = [line.split(":")[0] for line in lines[-5:]]
    assert heads == ["score", "submission", "page", "next", "next"]
    assert "report/index.html" in lines[-3] and "open" in lines[-2] and "--refit" in lines[-1]


@pytest.mark.slow
def test_a_prediction_tells_its_submission(start, korean_folder):
    assert start("--quiet", "--run-id", "r").returncode == 0
    done = start("predict", str(korean_folder), "--run-id", "r", "--json")
    events = events_of(done)
    both = executed("04_infer-fold0", "04_infer-fold1")
    assert names(events) == [("run_started", ""), *both, ("finished", "")]
    assert events[-1]["submission"].endswith(".csv")


def told(work):
    """Return the events that work tells on a console of `--json`."""
    out = io.StringIO()
    with redirect_stdout(out):
        work(make_console(events=True))
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_steps_are_told_now_and_then_and_the_last_one_always(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "POLL_SECONDS", 0.01)
    log = tmp_path / "train_log.csv"
    shown = live.last_step

    def work(console):
        with progress_lines(console) as progress, follow(progress, console, "03", log, 1):
            text = LOG
            for step in range(1, 41):
                text += f"{step},40,{'nan' if step == 40 else step / 10},0.1\n"
                log.write_text(text)
                shown(log)

    events = told(work)
    assert {event["event"] for event in events} == {"training_step"} and len(events) <= 2
    last = events[-1]
    assert (last["fold"], last["step"], last["max_steps"], last["loss"]) == (1, 40, 40, None)


@pytest.mark.parametrize(
    ("error", "event"),
    [(RunError("x"), "notebook_failed"), (Stopped(15), "notebook_stopped")],
)
def test_a_notebook_that_ends_early_is_told(error, event):
    def work(console):
        with pytest.raises(type(error)), telling(console, "01_eda", ()):
            raise error

    assert names(told(work)) == [("notebook_started", "01_eda"), (event, "01_eda")]


def test_other_consoles_tell_nothing(capsys):
    for console in (Console(), make_console(), make_console(quiet=True)):
        tell(console, "error", message="x")
    assert capsys.readouterr().out == ""


def test_warnings_leave_the_standard_output_to_events(capsys):
    console = make_console(events=True)
    console.print("a warning", style="yellow")
    console.print("a table")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "a warning\n"


def test_a_stop_is_the_last_event(monkeypatch, capsys):
    def stops(args, console):
        raise Stopped(15)

    monkeypatch.setattr("sys.argv", ["run_all.py", "--json", "--run-id", "r"])
    monkeypatch.setitem(run_all.COMMANDS, "run", stops)
    with pytest.raises(SystemExit):
        run_all.main()
    (event,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (event["event"], event["exit_status"]) == ("stopped", 143)

"""The page of a run while its driver is at work, and the command that shows it."""

import signal
import threading
import webbrowser

import pytest
from filelock import FileLock

import run_all
from vqa_utils.analysis.page.progress import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    RunProgress,
    read_progress,
    write_progress,
)
from vqa_utils.artifacts.files import read_json, settings_to_json, write_json
from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.errors import RunError, Stopped
from vqa_utils.planning.machine.gpus import T4
from vqa_utils.presets import preset
from vqa_utils.running import run_page
from vqa_utils.running.run_clock import RunClock
from vqa_utils.running.run_page import RunPage, planned_gpus
from vqa_utils.running.stages import STAGES, Step

EDA, FOLDS = Step(STAGES[0]), Step(STAGES[1])
REFRESH = 'http-equiv="refresh"'


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(run_page, "POLL_SECONDS", 0.01)
    paths = RunPaths("r")
    write_json(paths.config, settings_to_json(preset("demo")))
    return paths


@pytest.fixture
def clock(paths, console):
    return RunClock(paths, preset("demo"), console)


@pytest.fixture
def page(paths, clock, console):
    return RunPage(paths, clock, [EDA, FOLDS], console)


def html_of(paths):
    return paths.page.read_text(encoding="utf-8")


def wait_for(holds):
    """Wait until something holds, some seconds at most."""
    for _ in range(500):
        if holds():
            return True
        threading.Event().wait(0.01)
    return False


def test_the_page_is_there_from_the_start_and_follows_each_notebook(page, paths, clock):
    with page:
        assert read_progress(paths).steps == {"01_eda": "waiting", "02_folds": "waiting"}
        assert REFRESH in html_of(paths)
        with clock.working(EDA, paths.notebooks / "01_eda.ipynb"):
            assert wait_for(lambda: read_progress(paths).steps["01_eda"] == "running")
        assert wait_for(lambda: read_progress(paths).steps["01_eda"] == "finished")
        assert read_progress(paths).steps["02_folds"] == "waiting"
    assert read_progress(paths).state == FINISHED and REFRESH not in html_of(paths)


def test_nothing_is_written_while_nothing_changes(page, paths, monkeypatch):
    monkeypatch.setattr(run_page, "REFRESH_SECONDS", 3600)
    with page:
        written = paths.page.stat().st_mtime_ns
        threading.Event().wait(0.2)
        assert paths.page.stat().st_mtime_ns == written
        monkeypatch.setattr(run_page, "REFRESH_SECONDS", 0.05)
        assert wait_for(lambda: paths.page.stat().st_mtime_ns != written)


@pytest.mark.parametrize(
    ("error", "state", "shown"),
    [
        (RunError("01_eda failed at ~/here"), FAILED, "01_eda failed at ~/here"),
        (KeyError("odd"), FAILED, "odd"),
        (KeyboardInterrupt(), STOPPED, ""),
        (Stopped(signal.SIGTERM), STOPPED, ""),
    ],
)
def test_a_run_that_ends_early_says_so(page, paths, clock, error, state, shown):
    with pytest.raises(type(error)), page, clock.working(EDA, paths.notebooks / "01_eda.ipynb"):
        raise error
    progress = read_progress(paths)
    assert progress.state == state and progress.steps["01_eda"] == "stopped"
    html = html_of(paths)
    assert REFRESH not in html and shown in html


def test_a_message_names_no_folder_of_this_machine(page, paths, tmp_path):
    with pytest.raises(RunError), page:
        raise RunError(f"{paths.folder}/notebooks/01_eda.ipynb failed")
    assert str(tmp_path) not in html_of(paths)
    assert "runs/r/notebooks/01_eda.ipynb failed" in html_of(paths)


def test_a_run_whose_time_was_up_has_stopped(page, paths, clock):
    with page:
        clock.leave_out(FOLDS)
    assert read_progress(paths).state == STOPPED
    assert read_progress(paths).steps["02_folds"] == "left out"


def test_a_page_that_cannot_be_written_is_told_once_and_the_run_goes_on(
    page, paths, console, monkeypatch
):
    def fail(paths):
        raise ValueError("odd data")

    monkeypatch.setattr(run_page, "write_page", fail)
    monkeypatch.setattr(run_page, "REFRESH_SECONDS", 0)
    with page:
        threading.Event().wait(0.1)
    assert console.file.getvalue().count("ValueError('odd data')") == 1


def test_a_full_disk_is_told_too(page, paths, console):
    paths.report.write_text("in the folder's place")
    with page:
        pass
    assert "page could not be written" in console.file.getvalue()


def test_the_plan_is_of_a_fold_and_of_all_at_a_time(monkeypatch):
    monkeypatch.setattr(run_page, "find_gpus", lambda: [T4, T4])
    config = preset("safe", folds_at_once=2, micro_batch=1, accumulation=16, score_batch=4)
    gpus = planned_gpus(config)
    assert len(gpus) == 2 and gpus[0].name == "Tesla T4"
    for gpu in gpus:
        assert 5 < gpu.fold_gib < gpu.run_gib
    monkeypatch.setattr(run_page, "find_gpus", list)
    assert planned_gpus(config) == ()


@pytest.fixture
def shown_urls(monkeypatch):
    urls = []
    monkeypatch.setattr(webbrowser, "open", urls.append)
    return urls


def open_command(monkeypatch, console, *words):
    monkeypatch.setattr("sys.argv", ["run_all.py", "open", *words])
    run_all.run(run_all.parse_arguments(), console)
    return console.file.getvalue().strip()


def test_open_shows_the_newest_run_in_the_browser(paths, console, monkeypatch, shown_urls):
    monkeypatch.setenv("DISPLAY", ":0")
    assert open_command(monkeypatch, console) == str(paths.page)
    assert shown_urls == [paths.page.as_uri()] and "<h1>r</h1>" in html_of(paths)


def test_open_prints_the_path_where_there_is_no_browser(paths, console, monkeypatch, shown_urls):
    monkeypatch.setattr("sys.platform", "linux")
    for name in run_page.SCREENS:
        monkeypatch.delenv(name, raising=False)
    assert open_command(monkeypatch, console, "--run-id", "r") == str(paths.page)
    assert shown_urls == []


def test_open_tells_a_killed_run_from_one_at_work(paths, console, monkeypatch, shown_urls):
    write_progress(paths, RunProgress(RUNNING, 1.0, 2.0, {"01_eda": RUNNING}))
    with FileLock(paths.lock):  # a driver has it
        open_command(monkeypatch, console)
    assert read_progress(paths).state == RUNNING
    open_command(monkeypatch, console)
    assert read_progress(paths).state == STOPPED and REFRESH not in html_of(paths)


def test_open_of_no_run_is_refused(paths, console, monkeypatch):
    with pytest.raises(RunError):
        open_command(monkeypatch, console, "--run-id", "absent")


def test_a_command_writes_the_page_of_its_run(stand_in, console, monkeypatch, korean_folder):
    words = ["--data", str(korean_folder), "--run-id", "whole", "--set", "n_folds=2"]
    monkeypatch.setattr("sys.argv", ["run_all.py", *words])
    run_all.run(run_all.parse_arguments(), console)
    paths = RunPaths("whole")
    assert set(read_json(paths.progress)["steps"].values()) == {"finished"}
    assert REFRESH not in html_of(paths) and str(ROOT) not in html_of(paths)
    stand_in.broken.add("whole")
    monkeypatch.setattr("sys.argv", ["run_all.py", "--resume", "--force", "--run-id", "whole"])
    with pytest.raises(RunError):
        run_all.run(run_all.parse_arguments(), console)
    assert "ValueError: broken" in html_of(paths) and REFRESH not in html_of(paths)

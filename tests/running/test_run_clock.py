"""The expected end of a run, and its time budget; the time of day is the tests' own."""

import dataclasses
import os
import threading

import pandas as pd
import pytest
from stand_in import arguments, clock

from vqa_utils.artifacts.files import write_csv, write_json, write_text
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.stop import SCORING, STEP, TRAINING, VARIABLE, must_stop
from vqa_utils.errors import RunError
from vqa_utils.forecasting.forecast import RowCounts
from vqa_utils.forecasting.pace import Pace, ending_seconds, pace_of, scoring_seconds
from vqa_utils.presets import preset
from vqa_utils.running.notebooks.execution import NotebookError, NotebookStopped
from vqa_utils.running.resolution import resolve_run
from vqa_utils.running.run_clock import RunClock
from vqa_utils.running.runner import Runner
from vqa_utils.running.series import execute_steps
from vqa_utils.running.stages import STAGES, Step, select_steps

ROWS = RowCounts(train=900, test=400)
BY_NAME = {stage.name: stage for stage in STAGES}
TRAIN, SCORE = BY_NAME["03_train_fold"], BY_NAME["04_infer"]


@pytest.fixture
def config():
    return preset("demo", micro_batch=8, accumulation=2, tta=1, baselines=False, n_folds=3)


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "stop"))
    return RunPaths("r")


def log_steps(paths, fold, steps, seconds=2.0, max_steps=100):
    """The log of a training that is at a step."""
    numbers = range(1, steps + 1)
    log = pd.DataFrame({"step": numbers, "max_steps": max_steps, "seconds_per_step": seconds})
    write_csv(paths.fold(fold).train_log, log)


def archive(paths, name, seconds):
    write_json(paths.notebooks / f"{name}.ipynb", {"metadata": clock(0, seconds)})


def trained(paths, fold, *, whole=260.0, seconds=200.0, row=0.05):
    """A fold that is trained: its notebook took `whole` seconds, `seconds` of them with its model."""
    log_steps(paths, fold, 100)
    archive(paths, f"03_train_fold-fold{fold}", whole)
    write_json(paths.fold(fold).meta, {"seconds": seconds, "seconds_per_held_out_row": row})


def watched(paths, config, console, deadline=None, reused=()):
    one = RunClock(paths, config, console, ROWS, deadline)
    steps = select_steps(STAGES, config.adapter_numbers)
    one._due = [step for step in steps if step not in reused]
    return one


def test_a_pace_is_known_after_three_steps(paths, config):
    log_steps(paths, 0, 2)
    assert pace_of(paths, config) is None
    log_steps(paths, 0, 3)
    assert pace_of(paths, config).step == 2
    log_steps(paths, 1, 3, seconds=3.0)
    assert pace_of(paths, config).step == 3, "the slowest counts"


@pytest.mark.parametrize("text", ["", "step\n", "step,max_steps,seconds_per_step\n1,x\n", "\0"])
def test_a_torn_log_has_no_pace(paths, config, text):
    write_text(paths.fold(0).train_log, text)
    assert pace_of(paths, config) is None


def test_a_trained_fold_tells_the_seconds_of_a_start_and_of_a_row(paths, config):
    trained(paths, 0)
    assert pace_of(paths, config) == Pace(start=60, step=2, row=0.05)


@pytest.mark.parametrize(
    ("changes", "row_passes"),
    [
        ({}, 300 + 400),
        ({"baselines": True}, 3 * 300 + 400),
        ({"tta": 4}, 1.5 * 700),
        ({"tta": 4, "model": "no/such"}, 4 * 700),
    ],
)
def test_scoring_takes_a_start_and_the_passes_of_its_rows(config, changes, row_passes):
    config = dataclasses.replace(config, **changes)
    assert scoring_seconds(config, ROWS, Pace(60, 2, 0.05)) == pytest.approx(60 + 0.05 * row_passes)


def test_the_last_notebooks_are_expected_as_the_first_ones_until_they_have_run(paths):
    assert ending_seconds(paths) == 60
    archive(paths, "01_eda", 20)
    archive(paths, "02_folds", 10)
    archive(paths, "05_ensemble", None)  # it is just being executed
    assert ending_seconds(paths) == 30
    archive(paths, "05_ensemble", 7)
    assert ending_seconds(paths) == 7


def test_training_ends_in_time_to_score_what_is_trained(paths, config, console):
    archive(paths, "01_eda", 20)
    archive(paths, "02_folds", 10)
    trained(paths, 0)
    log_steps(paths, 1, 50)
    one = watched(paths, config, console, deadline=1000.0, reused=[Step(TRAIN, 0)])
    scoring = 60 + 0.05 * 700
    last_moment = 1000 - 30 - scoring - 2 * 2
    one.look(last_moment - 1)
    assert not must_stop(TRAINING)
    one.look(last_moment)
    assert must_stop(TRAINING) and not must_stop(SCORING)
    one.look(1000 - 30)
    assert must_stop(SCORING)


def test_two_trained_folds_are_scored_side_by_side_or_one_after_the_other(paths, config, console):
    trained(paths, 0)
    trained(paths, 1)
    reused = [Step(TRAIN, 0), Step(TRAIN, 1)]
    one = watched(paths, config, console, deadline=1000.0, reused=reused)
    scoring = 60 + 0.05 * 700
    one.at_once = 2
    one.look(1000 - 60 - 2 * scoring - 4)
    assert not must_stop(TRAINING)
    one.at_once = 1
    one.look(1000 - 60 - 2 * scoring - 4)
    assert must_stop(TRAINING)


def test_a_scored_fold_needs_no_more_time(paths, config, console):
    trained(paths, 0)
    one = watched(paths, config, console, deadline=1000.0)
    for stage in (TRAIN, SCORE):  # in this command
        with one.working(Step(stage, 0), paths.notebooks / f"{stage.name}-fold0.ipynb"):
            pass
    one.look(1000 - 60 - 4 - 1)
    assert not must_stop(TRAINING)


def test_a_fold_that_this_command_has_trained_needs_time_to_be_scored(paths, config, console):
    trained(paths, 0)
    one = watched(paths, config, console, deadline=1000.0)
    one.look(1000 - 60 - 4 - 1)
    assert not must_stop(TRAINING)
    with one.working(Step(TRAIN, 0), paths.notebooks / "03_train_fold-fold0.ipynb"):
        pass
    one.look(1000 - 60 - 4 - 1)
    assert must_stop(TRAINING)


def test_a_stop_that_could_not_be_written_is_written_by_the_next_look(
    paths, config, console, tmp_path
):
    one = watched(paths, config, console, deadline=1000.0)
    (tmp_path / "stop@time").mkdir()  # in the file's place
    with pytest.raises(OSError):
        one.look(1000)
    (tmp_path / "stop@time").rmdir()
    one.look(1000)
    assert must_stop(TRAINING)


def test_a_fold_that_is_scored_anew_needs_its_time(paths, config, console):
    """Its probabilities of other settings are there until its notebook begins."""
    trained(paths, 0)
    write_text(paths.fold(0).probs("test"), "id,a,b,c,d\n")
    one = watched(paths, config, console, deadline=1000.0, reused=[Step(TRAIN, 0)])
    one.look(1000 - 60 - 4 - 1)
    assert must_stop(TRAINING)


def test_a_look_that_fails_is_told_once_and_the_next_one_counts(
    paths, config, console, monkeypatch
):
    monkeypatch.setattr("vqa_utils.running.run_clock.POLL_SECONDS", 0.01)
    one = RunClock(paths, config, console, ROWS)
    looks = []
    goes_on = threading.Event()

    def look(now):
        looks.append(now)
        if len(looks) > 3:
            goes_on.set()
        if len(looks) > 1:
            raise KeyError("seconds")

    monkeypatch.setattr(one, "look", look)
    with one.watching([]):
        assert goes_on.wait(60)
    assert console.file.getvalue().count("KeyError") == 1


def test_without_a_trained_fold_training_goes_on_to_the_end(paths, config, console):
    """There is nothing to score, and the next session goes on from the last step."""
    log_steps(paths, 0, 50)
    one = watched(paths, config, console, deadline=1000.0)
    one.look(1000 - 60 - 4 - 1)
    assert not must_stop(TRAINING)
    one.look(1000 - 60 - 4)
    assert must_stop(TRAINING)


def test_without_a_budget_nothing_ends(paths, config, console):
    trained(paths, 0)
    watched(paths, config, console).look(1e12)
    assert not must_stop(TRAINING) and not must_stop(SCORING)


def test_the_expected_end_is_told_once_the_pace_is_known(paths, config, console, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    one = watched(paths, config, console)
    one.look(0)
    assert console.file.getvalue() == ""
    log_steps(paths, 0, 10)
    for now in (600, 601):
        one.look(now)
    # 290 steps of 2 s; 300 held-out rows of a third of a training row, in 3 epochs of each fold,
    # then with 400 test rows; the last two notebooks
    row = 0.3 * 2 / 16
    seconds = 290 * 2 + config.epochs * 2.9 * 300 * row + 3 * 700 * row + 60
    (line,) = console.file.getvalue().splitlines()
    assert f"in {round(seconds / 60)} min (2.00 s a step" in line


def test_folds_side_by_side_end_earlier(paths, config, console):
    ends = []
    for at_once in (1, 3):
        log_steps(paths, 0, 10)
        one = watched(paths, config, console)
        one.at_once = at_once
        ends.append(one._seconds_left(pace_of(paths, config), ROWS))
    assert ends[1] < ends[0] / 2


def test_a_run_that_will_not_end_in_time_says_so(paths, config, console):
    log_steps(paths, 0, 10)
    one = watched(paths, config, console, deadline=700.0)
    seconds = one._seconds_left(pace_of(paths, config), ROWS)
    one.look(100)
    assert f"budget ends {round((100 + seconds - 700) / 60)} min earlier" in console.file.getvalue()


def test_a_step_is_left_out_once_its_time_is_up(paths, config, console):
    one = watched(paths, config, console, deadline=1000.0)
    assert not one.leaves_out(Step(TRAIN, 0))
    one.look(999)
    assert one.leaves_out(Step(TRAIN, 0)) and one.leaves_out(Step(SCORE, 0))
    assert not one.leaves_out(Step(BY_NAME["01_eda"]))
    assert one.leaves_out(Step(BY_NAME["05_ensemble"])), "nothing is scored"
    log_steps(paths, 0, 42)
    with pytest.raises(RunError, match=r"no submission.*step 42 of 100.*--run-id r"):
        one.conclude()


@pytest.mark.slow
def test_the_submission_is_of_the_folds_that_were_trained_in_time(
    stand_in, korean_folder, console, monkeypatch
):
    """The time for training is up in fold 1; the same command goes on with folds 1 and 2."""
    is_short = True

    def execute(name, archived, parameters, process=None, cell_timeout=None):
        if is_short and archived.stem == "03_train_fold-fold1":
            runner.clock._end(TRAINING)
            raise NotebookStopped(f"{archived.stem} failed: StopRequested")
        stand_in.execute(name, archived, parameters, process)

    monkeypatch.setattr("vqa_utils.running.runner.fold_environments", lambda config, folds: [])
    monkeypatch.setattr("vqa_utils.running.notebooks.attempts.execute", execute)
    paths, config = resolve_run(arguments(run_id="r", data=str(korean_folder)), new_id="")
    runner = Runner(paths, config, console, reuse=True)
    steps = select_steps(STAGES, config.adapter_numbers)

    execute_steps(runner, steps)
    done = {name.split()[1] for name in stand_in.executed}
    folds = {"03_train_fold-fold0", "04_infer-fold0"}
    assert done == folds | {"01_eda", "02_folds", "05_ensemble", "06_analysis"}
    assert paths.submission(True).exists()
    left_out = console.file.getvalue().splitlines()[-1]
    for name in ("03_train_fold-fold1", "03_train_fold-fold2", "04_infer-fold1", "04_infer-fold2"):
        assert name in left_out

    is_short = False
    del stand_in.executed[:]
    execute_steps(Runner(paths, config, console, reuse=True), steps)
    done = {name.split()[1] for name in stand_in.executed}
    folds = {f"{stage}-fold{k}" for stage in ("03_train_fold", "04_infer") for k in (1, 2)}
    assert done == folds | {"05_ensemble", "06_analysis"}


@pytest.mark.slow
def test_a_notebook_that_fails_when_its_time_is_up_has_failed(
    stand_in, korean_folder, console, monkeypatch
):
    def execute(name, archived, parameters, process=None, cell_timeout=None):
        if name == "03_train_fold":
            runner.clock._end(TRAINING)
            raise NotebookError("ValueError: of its own")
        stand_in.execute(name, archived, parameters, process)

    monkeypatch.setattr("vqa_utils.running.runner.fold_environments", lambda config, folds: [])
    monkeypatch.setattr("vqa_utils.running.notebooks.attempts.execute", execute)
    paths, config = resolve_run(arguments(run_id="r", data=str(korean_folder)), new_id="")
    runner = Runner(paths, config, console, reuse=True)
    with pytest.raises(NotebookError, match="of its own"):
        execute_steps(runner, select_steps(STAGES, config.adapter_numbers))


def test_a_step_without_progress_is_named_once(paths, config, console, monkeypatch, tmp_path):
    monkeypatch.setattr("vqa_utils.running.run_clock.time.time", lambda: 1000.0)
    one = RunClock(paths, config, console, stall_seconds=60)
    archived = paths.notebooks / "03_train_fold-fold1.ipynb"
    log_steps(paths, 1, 40)
    with one.working(Step(TRAIN, 1), archived):
        one.look(1060)
        assert console.file.getvalue() == ""
        for now in (1061, 1062):
            one.look(now)
        (line,) = console.file.getvalue().splitlines()
        assert "03_train_fold-fold1 (at step 40 of 100)" in line and " 61 s" in line

        archived.parent.mkdir()
        archived.touch()  # a cell has ended
        os.utime(archived, (1100, 1100))
        one.look(1150)
        monkeypatch.setenv(STEP, "03_train_fold-fold1")
        must_stop(TRAINING)  # a step of the training has ended
        os.utime(f"{tmp_path / 'stop'}@03_train_fold-fold1", (1200, 1200))
        one.look(1250)
        assert len(console.file.getvalue().splitlines()) == 1
        one.look(1261)
        assert len(console.file.getvalue().splitlines()) == 2
    one.look(5000)
    assert len(console.file.getvalue().splitlines()) == 2


def test_a_disk_without_room_for_a_checkpoint_is_named_once(paths, config, console, monkeypatch):
    one = RunClock(paths, config, console)
    free = []
    monkeypatch.setattr("vqa_utils.running.run_clock.free_bytes", lambda paths: free[-1])
    with one.working(Step(TRAIN, 1), paths.notebooks / "03_train_fold-fold1.ipynb"):
        free.append(10**9)
        one.look(1.0)
        assert console.file.getvalue() == ""
        free.append(500_000)
        for now in (2.0, 3.0):
            one.look(now)
    (line,) = console.file.getvalue().splitlines()
    assert f"{one._least_free / 10**6:.1f} MB" in line

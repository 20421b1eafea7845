"""The expected end of a run, and its time budget; the time of day is the tests' own."""

import itertools
import threading

import pytest
from measured_runs import ROWS, SETTINGS, archive, log_steps, trained

from vqa_utils.artifacts.files import write_json, write_text
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.stop import SCORING, STEP, TRAINING, VARIABLE, must_stop
from vqa_utils.errors import RunError
from vqa_utils.forecasting.pace import pace_of
from vqa_utils.running.run_clock import RunClock
from vqa_utils.running.stages import STAGES, Step, select_steps

BY_NAME = {stage.name: stage for stage in STAGES}
TRAIN, SCORE = BY_NAME["03_train_fold"], BY_NAME["04_infer"]


@pytest.fixture
def config():
    return SETTINGS


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "stop"))
    return RunPaths("r")


def watched(paths, config, console, deadline=None, reused=()):
    one = RunClock(paths, config, console, ROWS, deadline)
    steps = select_steps(STAGES, config.adapter_numbers)
    one._due = [step for step in steps if step not in reused]
    return one


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
    one.at_once = lambda: 2
    one.look(1000 - 60 - 2 * scoring - 4)
    assert not must_stop(TRAINING)
    one.at_once = lambda: 1
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


def test_the_expected_end_comes_nearer_with_each_notebook(paths, config, console):
    one = watched(paths, config, console)
    assert one.expected_end(0.0) is None, "no pace is known"
    ends = []
    for stage in (TRAIN, SCORE):
        for fold in range(3):
            trained(paths, fold)
            with one.working(Step(stage, fold), paths.notebooks / f"{stage.name}-fold{fold}.ipynb"):
                pass
            ends.append(one.expected_end(0.0))
    steps = [before - after for before, after in itertools.pairwise(ends)]
    training, scoring = 60 + 200 + 3 * 300 * 0.05, 60 + 0.05 * 700
    assert steps == pytest.approx([training, training, scoring, scoring, scoring])
    assert ends[-1] > 0, "05 and 06 are left"


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


def test_nothing_is_begun_that_could_only_load_its_model(paths, config, console):
    trained(paths, 0)  # a start takes 60 s
    one = watched(paths, config, console, deadline=1000.0, reused=[Step(TRAIN, 0)])
    scoring_ends = 1000 - 60
    assert not one.leaves_out(Step(SCORE, 0), scoring_ends - 61)
    assert one.leaves_out(Step(SCORE, 0), scoring_ends - 60)
    training_ends = scoring_ends - 4 - (60 + 0.05 * 700)
    assert not one.leaves_out(Step(TRAIN, 1), training_ends - 61)
    assert one.leaves_out(Step(TRAIN, 1), training_ends - 60)


def test_a_training_that_loads_its_base_is_asked_to_stop_earlier(
    paths, config, console, monkeypatch
):
    """It hears nothing until the base is there."""
    trained(paths, 0)
    one = watched(paths, config, console, deadline=1000.0, reused=[Step(TRAIN, 0)])
    moment = 1000 - 60 - 4 - (60 + 0.05 * 700) - 60
    one.look(moment)
    assert not must_stop(TRAINING)
    monkeypatch.setattr("vqa_utils.running.notebooks.progress.time.time", lambda: moment)
    with one.working(Step(TRAIN, 1), paths.notebooks / "03_train_fold-fold1.ipynb"):
        monkeypatch.setenv(STEP, "03_train_fold-fold1")
        must_stop(TRAINING)  # it has shown life, long after 1970
        one.look(moment)
        assert not must_stop(TRAINING)
        with one.working(Step(TRAIN, 2), paths.notebooks / "03_train_fold-fold2.ipynb"):
            one.look(moment)
            assert must_stop(TRAINING)


def test_the_budget_holds_whatever_else_cannot_be_looked_at(paths, config, console, monkeypatch):
    write_json(paths.fold(0).meta, {"foreign": 1})
    log_steps(paths, 0, 100)
    one = watched(paths, config, console, deadline=1000.0)
    monkeypatch.setattr(one.progress, "look", lambda now: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one.look(1000)
    assert must_stop(TRAINING) and must_stop(SCORING)


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
        one.at_once = lambda: at_once  # noqa: B023
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
    assert not one.leaves_out(Step(TRAIN, 0), 0)
    one.look(999)
    assert one.leaves_out(Step(TRAIN, 0), 999) and one.leaves_out(Step(SCORE, 0), 999)
    assert not one.leaves_out(Step(BY_NAME["01_eda"]), 999)
    assert one.leaves_out(Step(BY_NAME["05_ensemble"]), 999), "nothing is scored"
    log_steps(paths, 0, 42)
    with pytest.raises(RunError, match=r"no submission.*step 42 of 100.*--run-id r"):
        one.conclude()

"""What a run does with its folds once their time is up."""

import dataclasses

import pytest
from stand_in import arguments

from vqa_utils.artifacts.stop import TRAINING
from vqa_utils.errors import RunError
from vqa_utils.running.notebooks.execution import NotebookError, NotebookStopped
from vqa_utils.running.resolution import resolve_run
from vqa_utils.running.run_clock import RunClock
from vqa_utils.running.runner import Runner
from vqa_utils.running.series import execute_steps
from vqa_utils.running.stages import STAGES, select_steps

pytestmark = pytest.mark.slow


@pytest.fixture
def complete_run(stand_in, korean_folder, console, monkeypatch):
    """A run's paths, settings and steps, all of them executed."""
    monkeypatch.setattr("vqa_utils.running.runner.fold_environments", lambda config, folds: [])
    paths, config = resolve_run(arguments(run_id="r", data=str(korean_folder)), new_id="")
    steps = select_steps(STAGES, config.adapter_numbers)
    execute_steps(Runner(paths, config, console, reuse=True), steps)
    return paths, config, steps


def test_the_submission_is_of_the_folds_that_were_trained_in_time(
    stand_in, korean_folder, console, monkeypatch
):
    """The time for training is up in fold 1; the same command goes on with folds 1 and 2."""
    is_short = True

    def execute(name, archived, parameters, process=None, cell_timeout=None, following=""):
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
    lines = console.file.getvalue().splitlines()
    (left_out,) = (line for line in lines if "the time budget is over" in line)
    for name in ("03_train_fold-fold1", "03_train_fold-fold2", "04_infer-fold1", "04_infer-fold2"):
        assert name in left_out

    is_short = False
    del stand_in.executed[:]
    execute_steps(Runner(paths, config, console, reuse=True), steps)
    done = {name.split()[1] for name in stand_in.executed}
    folds = {f"{stage}-fold{k}" for stage in ("03_train_fold", "04_infer") for k in (1, 2)}
    assert done == folds | {"05_ensemble", "06_analysis"}


def test_what_is_whole_stays_where_there_is_no_time_to_make_it_anew(
    stand_in, complete_run, console
):
    paths, config, steps = complete_run
    probabilities = paths.fold(0).probs("test").read_bytes()
    del stand_in.executed[:]
    execute_steps(Runner(paths, config, console, reuse=False), steps, deadline=1.0)
    done = {name.split()[1] for name in stand_in.executed}
    assert done == {"01_eda", "02_folds", "05_ensemble", "06_analysis"}
    assert paths.fold(0).probs("test").read_bytes() == probabilities
    assert paths.submission(True).exists()


def test_a_fold_that_is_as_before_waits_for_its_scoring_while_others_train(
    complete_run, console, monkeypatch
):
    """02 runs again and writes the same folds, so the trained ones are reused after all."""
    expected = []
    paths, config, steps = complete_run
    expect = RunClock.expect
    monkeypatch.setattr(
        RunClock, "expect", lambda self, due: (expected.append(due), expect(self, due))
    )
    changed = dataclasses.replace(config, max_memory=("13GB",))
    execute_steps(Runner(paths, changed, console, reuse=True), steps)
    again = [step.name for step in expected[-1]]
    assert [f"04_infer-fold{k}" for k in range(3)] == again[:3], "no training"


def test_without_time_to_score_anything_an_earlier_submission_stays(
    stand_in, complete_run, console
):
    paths, config, steps = complete_run
    submission = paths.submission(True).read_bytes()
    changed = dataclasses.replace(config, max_memory=("13GB",))
    with pytest.raises(RunError, match=r"no fold is scored.*submission_ensemble.csv is an earlier"):
        execute_steps(Runner(paths, changed, console, reuse=True), steps, deadline=1.0)
    assert paths.submission(True).read_bytes() == submission
    execute_steps(Runner(paths, changed, console, reuse=True), steps)
    assert paths.submission(True).exists() and paths.fold(0).probs("test").exists()


def test_a_notebook_that_fails_when_its_time_is_up_has_failed(
    stand_in, korean_folder, console, monkeypatch
):
    def execute(name, archived, parameters, process=None, cell_timeout=None, following=""):
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

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from vqa_utils.artifacts.files import write_csv
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.stop import STEP as STEP_VARIABLE
from vqa_utils.artifacts.stop import TRAINING, must_stop, stoppable
from vqa_utils.config import Config
from vqa_utils.errors import RunError
from vqa_utils.presets import preset
from vqa_utils.running import runner, series
from vqa_utils.running.resolution import start_run
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import STAGES, Stage, Step, select_steps
from vqa_utils.running.status import status_table
from vqa_utils.running.terminal.live import last_step

pytestmark = pytest.mark.slow

STEP = Step(Stage("writes", reads=("in.txt",), writes=("out.txt",)))


def test_a_step_is_reused_until_its_settings_inputs_or_outputs_change(small_run):
    make, paths, config = small_run
    out = paths.folder / "out.txt"

    def run(**changes):
        one = make(**changes)
        state = one.state(STEP)
        one.run([STEP])
        return state, out.read_text()

    assert run() == ("missing", "x")
    assert run() == ("done", "x")
    (paths.folder / "in.txt").write_text("2")
    assert run() == ("changed", "x")  # what it wrote before was set aside, then written anew
    assert [path.read_text() for path in paths.folder.glob("replaced/*/out.txt")] == ["x"]
    assert make().state(STEP) == "done"
    out.write_text("spoilt")
    assert run() == ("changed", "x")
    other = preset("demo", data=config.data, seed=1)
    assert run(config=other) == ("changed", "x")
    (paths.stages / "writes.json").unlink()
    assert make(config=other).state(STEP) == "missing"


def test_a_changed_picture_changes_every_step(small_run):
    make, _, config = small_run
    make().run([STEP])
    picture = next((Path(config.data) / "images").iterdir())
    os.utime(picture, (1, 1))
    assert make().state(STEP) == "done", "a copy with another date is the same data"
    picture.write_bytes(picture.read_bytes() + b" ")
    assert make().state(STEP) == "changed"
    picture.unlink()
    assert make().state(STEP) == "changed"


def test_force_runs_what_could_be_reused(small_run):
    make, paths, _ = small_run
    make().run([STEP])
    marker = paths.stages / "writes.json"
    before = marker.stat().st_mtime_ns
    make(reuse=False).run([STEP])
    assert marker.stat().st_mtime_ns > before


def test_files_that_are_set_aside_twice_within_a_second_are_kept_twice(small_run, monkeypatch):
    monkeypatch.setattr("vqa_utils.running._markers.time.strftime", lambda form: "now")
    make, paths, _ = small_run
    for number in range(3):
        (paths.folder / "in.txt").write_text(str(number))
        make().run([STEP])
        (paths.folder / "out.txt").write_text(f"written {number}")
    kept = {path.parent.name: path.read_text() for path in paths.folder.glob("replaced/*/out.txt")}
    assert kept == {"now": "written 0", "now-2": "written 1"}


@dataclass(frozen=True, kw_only=True)
class Later(Config):
    """Settings as they may be one day."""

    colour: str = "red"


@pytest.fixture
def whole_run(stand_in, console, korean_folder):
    """The paths, settings and steps of a run that was executed to its end."""
    config = preset("demo", data=str(korean_folder), n_folds=2)
    steps, paths = select_steps(STAGES, config.fold_numbers), RunPaths("whole")
    start_run(paths, config)
    Runner(paths, config, console, reuse=True).run(steps)
    return paths, config, steps


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"ensemble": "vote", "calibrate": False}, "05"),
        ({"tta": 2}, "04"),
        ({"score_batch": 3}, "04"),
        ({"baselines": False}, "04"),
        ({"seed": 1}, "01"),
        ({"data_class": Later}, "01"),
    ],
)
def test_a_setting_counts_from_the_notebook_on_that_uses_it_first(
    whole_run, console, changes, first
):
    paths, config, steps = whole_run
    if "data_class" in changes:
        changed = Later(**dataclasses.asdict(config))
    else:
        changed = dataclasses.replace(config, **changes)
    runner = Runner(paths, changed, console, reuse=True)
    for step in steps:
        assert runner.state(step) == ("changed" if step.name >= first else "done"), step.name


def test_the_marker_is_set_aside_last_and_each_file_once(whole_run, console, monkeypatch):
    paths, config, steps = whole_run
    moved, rename = [], Path.rename

    def noted(path, target):
        moved.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", noted)
    scoring = next(step for step in steps if step.name == "04_infer-fold0")
    Runner(paths, dataclasses.replace(config, tta=2), console, reuse=True).run([scoring])
    assert sorted(moved[:-1]) == ["probs_oof.csv", "probs_test.csv"]
    assert moved[-1] == "04_infer-fold0.json"


def test_a_notebook_that_does_not_write_its_files_is_an_error(small_run, notebooks):
    make, paths, _ = small_run
    notebooks("writes", "pass")
    with pytest.raises(RunError, match=r"runs/small/out\.txt"):
        make().run([STEP])
    assert not (paths.stages / "writes.json").exists()


def test_the_line_of_a_training_says_step_loss_pace_and_time_left(tmp_path):
    log = tmp_path / "train_log.csv"
    head = "step,max_steps,epoch,loss,learning_rate,grad_norm,seconds_per_step,memory_gib\n"
    log.write_text(head)
    assert last_step(log) == (0, 1, 0.0, "")
    log.write_text(head + "1,41,0.1,1.5,0.1,1,2.0,1\n2,41,0.2,1.25,0.1,1,4.0,1\n")
    assert last_step(log) == (2, 41, 1.25, "step 2/41  loss 1.250  3.00 s/step  1:57 left")
    log.write_text(log.read_text() + "3,41,0.3")
    assert last_step(log).text == ""


def test_the_data_is_hashed_before_the_live_lines_start(small_run, monkeypatch):
    order, data_hash, progress_lines = [], runner.data_hash, runner.progress_lines
    monkeypatch.setattr(
        runner,
        "data_hash",
        lambda *run, **images: order.append("hash") or data_hash(*run, **images),
    )
    monkeypatch.setattr(
        runner, "progress_lines", lambda *given: order.append("lines") or progress_lines(*given)
    )
    make, _, _ = small_run
    make().run([STEP])
    assert order == ["hash", "lines"]


def test_a_step_that_another_command_executes_is_shown_at_work(small_run, monkeypatch):
    make, paths, _ = small_run
    training = Step(STAGES[2], 0)
    log = pd.DataFrame({"step": [1, 2], "max_steps": 4, "seconds_per_step": 2.0, "loss": 0.5})
    write_csv(paths.fold(0).train_log, log)
    (line,) = status_table(make(), [training])["a run would"]
    assert line == "run"
    with stoppable(paths):
        monkeypatch.setenv(STEP_VARIABLE, training.name)
        must_stop(TRAINING)  # as a notebook does after each step
        (line,) = status_table(make(), [training])["a run would"]
        assert line.startswith("at work, seen 0 s ago  step 2/4") and "0:04 left" in line
        monkeypatch.setattr(runner.time, "time", lambda: 1e10)
        assert status_table(make(), [training])["a run would"].item() == "run", "long ago"


def test_the_time_says_that_folds_ran_side_by_side():
    assert series._describe_minutes(120, 90) == "2.0 minutes"
    said = series._describe_minutes(342, 931)
    assert said == "5.7 minutes; 15.5 of all notebooks, as folds ran side by side"

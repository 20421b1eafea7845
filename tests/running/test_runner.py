import dataclasses
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import arguments, write_korean_challenge

import run_all
from run_all import STAGES
from vqa_utils.artifacts.files import read_json, write_json
from vqa_utils.artifacts.paths import RunPaths, runs_dir
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import Config, to_dict
from vqa_utils.data.folds import FoldError
from vqa_utils.errors import RunError
from vqa_utils.presets import preset
from vqa_utils.running import resolution as runs
from vqa_utils.running.execution import execute
from vqa_utils.running.resolution import resolve_run, start_run, with_data
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import Stage, Step, select_steps
from vqa_utils.running.terminal import last_step
from vqa_utils.setting_types import ConfigError


def test_an_unknown_parameter_is_an_error(notebooks, tmp_path):
    notebooks("two", "1 + 1")
    with pytest.raises(
        RunError,
        match=r"two\.ipynb: expected some of the parameters \['run_id'\], found \['fold'\]",
    ):
        execute("two", tmp_path / "out.ipynb", {"run_id": "r", "fold": 1})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_failing_notebook_is_archived_and_named(notebooks):
    notebooks("broken", "print(run_id)", "raise ValueError('no such picture')", "print('never')")
    archived = RunPaths("broken-run").notebooks / "broken.ipynb"
    with pytest.raises(
        RunError,
        match=r"(?s)broken failed: ValueError: no such picture.*runs/broken-run/notebooks/broken\.ipynb",
    ):
        execute("broken", archived, {"run_id": "broken-run"})
    outputs = [
        cell.outputs for cell in nbformat.read(archived, 4).cells if cell.cell_type == "code"
    ]
    text = str(outputs)
    assert "broken-run" in text and "no such picture" in text and "never" not in text


def test_a_kernel_that_dies_is_named(notebooks, tmp_path):
    notebooks("dies", "import os; os._exit(9)")
    with pytest.raises(RunError, match="dies: its kernel died"):
        execute("dies", tmp_path / "dies.ipynb", {})


STAGE = Stage("writes", reads=("in.txt",), writes=("out.txt",))


STARTS = """
import os, pathlib, sys
starts = pathlib.Path(__file__).with_name("starts.txt")
with starts.open("a") as file:
    file.write("x")
if len(starts.read_text()) <= {failing}:
    sys.exit("Address already in use")
os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *sys.argv[1:]])
"""


@pytest.mark.parametrize(("failing", "works"), [(2, True), (3, False)])
def test_a_kernel_that_dies_as_it_starts_is_started_again(
    notebooks, tmp_path, monkeypatch, failing, works
):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "start.py").write_text(STARTS.format(failing=failing))
    argv = [sys.executable, str(spec / "start.py"), "-f", "{connection_file}"]
    write_json(
        spec / "kernel.json", {"argv": argv, "display_name": "Python 3", "language": "python"}
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    notebooks("once", f"open({str(tmp_path / 'out.txt')!r}, 'a').write('x')")
    if works:
        execute("once", tmp_path / "archive" / "once.ipynb", {})
        assert (tmp_path / "out.txt").read_text() == "x"
    else:
        with pytest.raises(RunError, match="once: its kernel died 3 times as it started"):
            execute("once", tmp_path / "archive" / "once.ipynb", {})
    assert (spec / "starts.txt").read_text() == "xxx"


def test_a_step_is_reused_until_its_settings_inputs_or_outputs_change(small_run):
    make, paths, config = small_run
    step, out = Step(STAGE), paths.folder / "out.txt"

    def run(**changes):
        one = make(**changes)
        state = one.state(step)
        one.run([step])
        return state, out.read_text()

    assert run() == ("missing", "x")
    assert run() == ("done", "x")
    (paths.folder / "in.txt").write_text("2")
    assert run() == ("changed", "x")  # what it wrote before was set aside, then written anew
    assert [path.read_text() for path in paths.folder.glob("replaced/*/out.txt")] == ["x"]
    assert make().state(step) == "done"
    out.write_text("spoilt")
    assert run() == ("changed", "x")
    other = preset("demo", data=config.data, seed=1)
    assert run(config=other) == ("changed", "x")
    (paths.folder / "stages" / "writes.json").rename(paths.folder / "kept.json")
    assert make(config=other).state(step) == "missing"


def test_a_changed_picture_changes_every_step(small_run):
    make, _, config = small_run
    step = Step(STAGE)
    make().run([step])
    picture = next((runs.Path(config.data) / "images").iterdir())
    os.utime(picture, (1, 1))
    assert make().state(step) == "done", "a copy with another date is the same data"
    picture.write_bytes(picture.read_bytes() + b" ")
    assert make().state(step) == "changed"
    picture.unlink()
    assert make().state(step) == "changed"


def test_force_runs_what_could_be_reused(small_run):
    make, paths, _ = small_run
    make().run([Step(STAGE)])
    marker = paths.stages / "writes.json"
    before = marker.stat().st_mtime_ns
    make(reuse=False).run([Step(STAGE)])
    assert marker.stat().st_mtime_ns > before


def test_what_is_set_aside_twice_within_a_second_is_kept_twice(small_run, monkeypatch):
    monkeypatch.setattr("vqa_utils.running.runner.time.strftime", lambda form: "now")
    make, paths, _ = small_run
    for number in range(3):
        (paths.folder / "in.txt").write_text(str(number))
        make().run([Step(STAGE)])
        (paths.folder / "out.txt").write_text(f"written {number}")
    kept = {path.parent.name: path.read_text() for path in paths.folder.glob("replaced/*/out.txt")}
    assert kept == {"now": "written 0", "now-2": "written 1"}


@dataclass(frozen=True, kw_only=True)
class Later(Config):
    """Settings as they may be one day."""

    colour: str = "red"


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"ensemble": "vote", "calibrate": False}, "05"),
        ({"tta": 2}, "04"),
        ({"score_batch": 3}, "04"),
        ({"baselines": False}, "04"),
        ({"seed": 1}, "01"),
        (None, "01"),
    ],
)
def test_a_setting_counts_from_the_notebook_on_that_uses_it_first(
    stand_in, console, korean_folder, changes, first
):
    config = preset("demo", data=str(korean_folder), n_folds=2)
    steps = select_steps(STAGES, config.fold_numbers)
    start_run(RunPaths("counted"), config)
    Runner(RunPaths("counted"), config, console, reuse=True).run(steps)
    changed = (
        dataclasses.replace(config, **changes) if changes else Later(**dataclasses.asdict(config))
    )
    states = {
        step.name: Runner(RunPaths("counted"), changed, console, reuse=True).state(step)
        for step in steps
    }
    assert states == {step.name: "changed" if step.name >= first else "done" for step in steps}


def test_the_marker_is_set_aside_last_and_each_file_once(
    stand_in, console, korean_folder, monkeypatch
):
    config, moved, rename = preset("demo", data=str(korean_folder), n_folds=2), [], Path.rename
    steps, paths = select_steps(STAGES, config.fold_numbers), RunPaths("aside")
    start_run(paths, config)
    Runner(paths, config, console, reuse=True).run(steps)
    monkeypatch.setattr(
        Path, "rename", lambda path, target: moved.append(path.name) or rename(path, target)
    )
    scoring = next(step for step in steps if step.name == "04_infer-fold0")
    Runner(paths, dataclasses.replace(config, tta=2), console, reuse=True).run([scoring])
    assert moved[-1] == "04_infer-fold0.json" and sorted(moved[:-1]) == [
        "probs_oof.csv",
        "probs_test.csv",
    ]


def test_a_notebook_that_does_not_write_its_files_is_an_error(small_run, notebooks):
    make, paths, _ = small_run
    notebooks("writes", "pass")
    with pytest.raises(
        RunError, match=r"expected it to write runs/small/out\.txt, found nothing there"
    ):
        make().run([Step(STAGE)])
    assert not (paths.stages / "writes.json").exists()


def test_a_new_run_has_the_presets_settings_and_what_the_command_changes():
    paths, config = resolve_run(
        arguments(preset="safe", set=["lora_r=12"], limit=5, data="some/where"), "now"
    )
    assert paths.run_id == "now-safe" and (config.lora_r, config.limit) == (12, 5)
    assert config.data == str(runs.Path("some/where").resolve())


def test_a_run_that_is_there_is_not_overwritten(korean_folder):
    config = preset("demo", data=str(korean_folder), epochs=2)
    start_run(RunPaths("there"), config)
    assert (runs_dir() / "latest").resolve().name == "there"
    with pytest.raises(RunError, match="runs/there is there already: --resume goes on with it"):
        resolve_run(arguments(run_id="there"), "now")
    for given in (
        {"run_id": "there", "resume": True},
        {"resume": True},
        {"command": "status"},
        {"run_id": "there", "force": True},
    ):
        paths, found = resolve_run(arguments(**given), "now")
        assert (paths.run_id, found) == ("there", config)
    changed = resolve_run(arguments(resume=True, set=["epochs=3"]), "now")[1]
    assert to_dict(changed) == to_dict(config) | {"epochs": 3.0}


def test_the_origin_of_every_command_of_a_run_is_kept(korean_folder, monkeypatch):
    for commit in "abc":
        monkeypatch.setattr(runs, "provenance", lambda commit=commit: {"git_commit": commit})
        start_run(RunPaths("thrice"), preset("demo", data=str(korean_folder)))
    found = read_json(RunPaths("thrice").provenance)
    assert [found["git_commit"], *(start["git_commit"] for start in found["earlier"])] == [
        "c",
        "b",
        "a",
    ]
    assert all(
        start["inputs"] == found["inputs"] and "earlier" not in start for start in found["earlier"]
    )


def test_folds_that_were_edited_are_checked_before_anything_runs(
    stand_in, console, tmp_path, monkeypatch
):
    folder = write_korean_challenge(tmp_path / "data", train=8, test=2)

    def command(*arguments):
        stand_in.executed.clear()
        monkeypatch.setattr("sys.argv", ["run_all.py", "--run-id", "mine", *arguments])
        run_all.run(run_all.parse_arguments(), console)

    with pytest.raises(FoldError, match="run notebook 02_folds first"):
        command("--data", str(folder), "--only", "03_train_fold", "--set", "n_folds=2")
    command("--force", "--only", "02_folds")
    folds = pd.read_csv(RunPaths("mine").folds)
    first, second = (folds["id"][folds["fold"] == k].iloc[0] for k in (0, 1))
    folds.assign(
        group=folds["group"]
        .where(folds["id"] != second, "picture 0")
        .where(folds["id"] != first, "picture 0")
    ).to_csv(RunPaths("mine").folds, index=False)
    with pytest.raises(
        FoldError,
        match=rf"folds\.csv: expected each image in one fold.*{min(first, second)}.*put them into one",
    ):
        command("--resume", "--from", "03_train_fold")
    folds.to_csv(RunPaths("mine").folds, index=False)
    shutil.copyfile(folder / f"images/{first}.png", folder / f"images/{second}.png")
    with pytest.raises(FoldError, match=rf"by the files' contents: .*{max(first, second)}"):
        command("--resume", "--from", "03_train_fold")
    assert not stand_in.executed
    command("--resume", "--only", "01_eda")
    assert stand_in.executed == ["mine 01_eda"], "a stage that uses no folds"


@pytest.mark.parametrize("name", ["latest", "demo-data", "a/b", "../x"])
def test_a_run_id_is_a_plain_name(name):
    with pytest.raises(RunError, match=r"--run-id: expected letters, digits"):
        resolve_run(arguments(run_id=name), "now")


def test_a_models_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert resolve_run(arguments(model="mine"), "now")[1].model == str(tmp_path / "mine")
    assert (
        resolve_run(arguments(model="Qwen/Qwen3-VL-8B-Instruct"), "now")[1].model
        == "Qwen/Qwen3-VL-8B-Instruct"
    )


def test_another_preset_keeps_what_the_run_has_besides(korean_folder):
    start_run(RunPaths("preset-change"), preset("safe", data=str(korean_folder), seed=7, n_folds=5))
    found = resolve_run(arguments(run_id="preset-change", resume=True, preset="low_memory"), "now")[
        1
    ]
    assert (found.seed, found.n_folds, found.data, found.lora_r) == (7, 5, str(korean_folder), 4)


def test_a_run_that_is_not_there_cannot_be_resumed():
    with pytest.raises(RunError, match="expected a run, found none"):
        resolve_run(arguments(run_id="nowhere", resume=True), "now")
    with pytest.raises(ConfigError, match=r"start it with run_all.py"):
        open_run("nowhere")


def test_a_notebook_opened_by_hand_makes_the_interactive_run(monkeypatch, tmp_path):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    paths, config = open_run("interactive")
    assert config == preset("demo") == open_run("interactive")[1] and paths.config.exists()
    assert not (tmp_path / "latest").exists()


def test_data_is_found_below_kaggles_input_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "KAGGLE_INPUT", tmp_path)
    with pytest.raises(RunError, match=r"--data: expected the folder with train.csv"):
        with_data(preset("safe"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").touch()
        if name == "one":
            assert with_data(preset("safe")).data == str(tmp_path / "one")
    with pytest.raises(RunError, match=r"found .*one, .*two"):
        with_data(preset("safe"))
    assert with_data(preset("demo")) == preset("demo")


def test_the_line_of_a_training_says_step_loss_pace_and_time_left(tmp_path):
    log = tmp_path / "train_log.csv"
    head = "step,max_steps,epoch,loss,learning_rate,grad_norm,seconds_per_step,memory_gib\n"
    log.write_text(head)
    assert last_step(log) == (0, 1, "")
    log.write_text(head + "1,41,0.1,1.5,0.1,1,2.0,1\n2,41,0.2,1.25,0.1,1,4.0,1\n")
    assert last_step(log) == (2, 41, "step 2/41  loss 1.250  3.00 s/step  1:57 left")
    log.write_text(log.read_text() + "3,41,0.3")
    assert last_step(log)[2] == ""


def test_the_data_is_hashed_before_the_live_lines_start(small_run, monkeypatch):
    from vqa_utils.running import runner

    order, hashed, lines = [], runner.data_hash, runner.progress_lines
    monkeypatch.setattr(runner, "data_hash", lambda *run: order.append("hash") or hashed(*run))
    monkeypatch.setattr(
        runner, "progress_lines", lambda console: order.append("lines") or lines(console)
    )
    make, _, _ = small_run
    make().run([Step(STAGE)])
    assert order == ["hash", "lines"]

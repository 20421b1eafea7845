import argparse
import dataclasses
import io
import os

import nbformat
import pytest
from conftest import write_korean_challenge
from nbformat.v4 import new_code_cell, new_notebook
from rich.console import Console

from vqa_utils import execution, runner, runs
from vqa_utils.artifacts import write_json
from vqa_utils.config import ConfigError, to_dict
from vqa_utils.execution import NotebookError, execute
from vqa_utils.ladder import LadderError
from vqa_utils.machine import T4, Gpu
from vqa_utils.paths import ROOT, RunPaths, runs_dir
from vqa_utils.presets import preset
from vqa_utils.runner import Runner
from vqa_utils.runs import open_run, settle_run, start_run, with_data
from vqa_utils.stages import RunError, Stage, Step
from vqa_utils.terminal import last_step

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of small notebooks in place of the series."""
    monkeypatch.setattr(execution, "NOTEBOOKS", tmp_path)

    def write(name, *sources):
        parameters = new_code_cell('run_id: str = "interactive"  # the run', metadata={"tags": ["parameters"]})
        cells = [parameters, *map(new_code_cell, sources)]
        nbformat.write(new_notebook(cells=cells, metadata=KERNEL), tmp_path / f"{name}.ipynb")

    return write


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def arguments(**given):
    nothing = {
        "data": None,
        "plan": None,
        "model": None,
        "limit": None,
        "set": [],
        "run_id": None,
        "preset": None,
        "cache_dir": None,
    }
    return argparse.Namespace(
        **{**nothing, **dict.fromkeys(("resume", "status", "predict", "force", "dry_run"), False), **given}
    )


def test_an_unknown_parameter_is_an_error(notebooks, tmp_path):
    notebooks("two", "1 + 1")
    with pytest.raises(RunError, match=r"two\.ipynb: expected some of the parameters \['run_id'\], found \['fold'\]"):
        execute("two", tmp_path / "out.ipynb", {"run_id": "r", "fold": 1})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_failing_notebook_is_archived_and_named(notebooks):
    notebooks("broken", "print(run_id)", "raise ValueError('no such picture')", "print('never')")
    archived = RunPaths("broken-run").notebooks / "broken.ipynb"
    with pytest.raises(
        RunError, match=r"(?s)broken failed: ValueError: no such picture.*runs/broken-run/notebooks/broken\.ipynb"
    ):
        execute("broken", archived, {"run_id": "broken-run"})
    outputs = [cell.outputs for cell in nbformat.read(archived, 4).cells if cell.cell_type == "code"]
    text = str(outputs)
    assert "broken-run" in text and "no such picture" in text and "never" not in text


def test_a_kernel_that_dies_is_named(notebooks, tmp_path):
    notebooks("dies", "import os; os._exit(9)")
    with pytest.raises(RunError, match="dies: its kernel died"):
        execute("dies", tmp_path / "dies.ipynb", {})


STAGE = Stage("writes", reads=("in.txt",), writes=("out.txt",))


@pytest.fixture
def small_run(notebooks, console, tmp_path, monkeypatch):
    """A run of one notebook that counts its executions in a file."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    config = preset("demo", data=str(write_korean_challenge(tmp_path / "data", train=4, test=2)))
    paths = RunPaths("small")
    paths.folder.mkdir(parents=True)
    (paths.folder / "in.txt").write_text("1")
    out = str(paths.folder / "out.txt")
    notebooks("writes", f"open({out!r}, 'a').write('x')")
    return (
        lambda **changes: Runner(paths, changes.get("config", config), console, reuse=changes.get("reuse", True)),
        paths,
        config,
    )


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


FOLDS = Stage("per_fold", writes=("fold{fold}/out.txt",), per_fold=True, trains=True)
LOOK = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom vqa_utils.runs import open_run\n"
LOOK += "paths, config = open_run(run_id, fold)\nout = paths.fold(fold).folder / 'out.txt'\nout.parent.mkdir(exist_ok=True)"


def fold_notebook(folder, *sources):
    """A notebook of one fold that has the run's settings as `config`, and where to write as `out`."""
    parameters = new_code_cell("run_id: str = ''  # run\nfold: int = 0  # fold", metadata={"tags": ["parameters"]})
    nbformat.write(
        new_notebook(cells=[parameters, *map(new_code_cell, (LOOK, *sources))], metadata=KERNEL), folder / "per_fold.ipynb"
    )


@pytest.fixture
def folds_run(small_run, tmp_path):
    """A run whose notebook of folds is still to be written; its settings are on the disk, as a notebook reads them."""
    make, paths, config = small_run

    def run(*sources, folds=(0, 1), **changes):
        fold_notebook(tmp_path, *sources)
        settings = dataclasses.replace(config, **changes)
        write_json(paths.config, to_dict(settings))
        make(config=settings).run([Step(FOLDS, fold) for fold in folds])
        return paths

    return run


OUT_OF_MEMORY = "raise torch.OutOfMemoryError('CUDA out of memory. GPU 0 has a total capacity of 14.74 GiB')"


def test_memory_that_ran_out_takes_a_rung_in_a_fresh_kernel(folds_run, console):
    paths = folds_run(f"import torch\nif config.micro_batch > 4: {OUT_OF_MEMORY}\nout.write_text(str(config.micro_batch))")
    assert [(paths.fold(k).folder / "out.txt").read_text() for k in (0, 1)] == ["4", "4"]
    archived = sorted(path.name for path in paths.notebooks.iterdir())
    assert archived == [  # the second fold starts where the first one got to
        "per_fold-fold0-out-of-memory1.ipynb", "per_fold-fold0-out-of-memory2.ipynb", "per_fold-fold0.ipynb", "per_fold-fold1.ipynb"
    ]  # fmt: skip
    config = open_run("small", 1)[1]
    assert (config.micro_batch, config.accumulation) == (4, 4) and open_run("small")[1].micro_batch == 16
    said = console.file.getvalue()
    assert "per_fold-fold0         out of memory; GPU 0, training: micro-batch 16 -> 8 (saves" in said
    assert "micro-batch 8 -> 4" in said


def test_the_ladders_end_and_a_run_without_it(folds_run, small_run):
    with pytest.raises(LadderError, match=r"GPU 0 ran out of memory in training, and nothing is left"):
        folds_run(f"import torch\n{OUT_OF_MEMORY}", folds=(0,), micro_batch=2, lora_r=4)
    without = small_run[0]()
    without.ladder = False
    with pytest.raises(RunError, match="per_fold-fold0 failed: OutOfMemoryError"):
        without.run([Step(FOLDS, 0)])


def test_another_error_takes_no_rung(folds_run):
    with pytest.raises(RunError, match="per_fold-fold1 failed: ValueError: not memory"):
        folds_run("if fold: raise ValueError('not memory')\nout.write_text('x')")
    assert not RunPaths("small").fold(1).rungs.exists()


MEET = """
import os, time
(paths.folder / f"here{fold}").touch()
waited = time.time()
while not (paths.folder / f"here{1 - fold}").exists():
    assert time.time() - waited < 60, "the other fold never started"
    time.sleep(0.1)
out.write_text(os.environ["CUDA_VISIBLE_DEVICES"])
"""


def test_folds_that_have_a_gpu_each_run_side_by_side(folds_run, monkeypatch):
    monkeypatch.setattr(runner, "gpus_for_folds", lambda config: ["2", "3"])
    paths = folds_run(MEET)
    assert sorted((paths.fold(k).folder / "out.txt").read_text() for k in (0, 1)) == ["2", "3"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_side_by_side_one_folds_error_waits_for_the_other(folds_run, monkeypatch):
    monkeypatch.setattr(runner, "gpus_for_folds", lambda config: ["0", "1"])
    with pytest.raises(NotebookError, match="per_fold-fold0 failed: ValueError: no"):
        folds_run(MEET, "if fold == 0: raise ValueError('no')")
    paths = RunPaths("small")
    assert (paths.stages / "per_fold-fold1.json").exists() and not (paths.stages / "per_fold-fold0.json").exists()


def test_which_gpus_folds_get(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for gpus, name, expected in [
        ([T4, T4], "dense_8b", ["0", "1"]), ([T4, T4], "single_gpu", ["0", "1"]), ([T4], "dense_8b", []), ([T4, T4], "safe", []),
        ([], "demo", []), ([T4, Gpu("K80", 4)], "dense_8b", ["0"]),
    ]:  # fmt: skip
        monkeypatch.setattr(runner, "find_gpus", lambda gpus=gpus: gpus)
        assert runner.gpus_for_folds(preset(name)) == expected


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


def test_a_notebook_that_does_not_write_its_files_is_an_error(small_run, notebooks):
    make, paths, _ = small_run
    notebooks("writes", "pass")
    with pytest.raises(RunError, match=r"expected it to write runs/small/out\.txt, found nothing there"):
        make().run([Step(STAGE)])
    assert not (paths.stages / "writes.json").exists()


def test_a_new_run_has_the_presets_settings_and_what_the_command_changes():
    paths, config = settle_run(arguments(preset="safe", set=["lora_r=12"], limit=5, data="some/where"), "now")
    assert paths.run_id == "now-safe" and (config.lora_r, config.limit) == (12, 5)
    assert config.data == str(runs.Path("some/where").resolve())


def test_a_run_that_is_there_is_not_overwritten(korean_folder):
    config = preset("demo", data=str(korean_folder), epochs=2)
    start_run(RunPaths("there"), config)
    assert (runs_dir() / "latest").resolve().name == "there"
    with pytest.raises(RunError, match="runs/there is there already: --resume goes on with it"):
        settle_run(arguments(run_id="there"), "now")
    for given in ({"run_id": "there", "resume": True}, {"resume": True}, {"status": True}, {"run_id": "there", "force": True}):
        paths, found = settle_run(arguments(**given), "now")
        assert (paths.run_id, found) == ("there", config)
    changed = settle_run(arguments(resume=True, set=["epochs=3"]), "now")[1]
    assert to_dict(changed) == to_dict(config) | {"epochs": 3.0}


@pytest.mark.parametrize("name", ["latest", "demo-data", "a/b", "../x"])
def test_a_run_id_is_a_plain_name(name):
    with pytest.raises(RunError, match=r"--run-id: expected letters, digits"):
        settle_run(arguments(run_id=name), "now")


def test_a_models_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert settle_run(arguments(model="mine"), "now")[1].model == str(tmp_path / "mine")
    assert settle_run(arguments(model="Qwen/Qwen3-VL-8B-Instruct"), "now")[1].model == "Qwen/Qwen3-VL-8B-Instruct"


def test_another_preset_keeps_what_the_run_has_besides(korean_folder):
    start_run(RunPaths("preset-change"), preset("safe", data=str(korean_folder), seed=7, n_folds=5))
    found = settle_run(arguments(run_id="preset-change", resume=True, preset="low_memory"), "now")[1]
    assert (found.seed, found.n_folds, found.data, found.lora_r) == (7, 5, str(korean_folder), 4)


def test_a_run_that_is_not_there_cannot_be_resumed():
    with pytest.raises(RunError, match="expected a run, found none"):
        settle_run(arguments(run_id="nowhere", resume=True), "now")
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

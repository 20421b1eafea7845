"""Steps of folds through the runner: rungs after memory ran out."""

import dataclasses
import os

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from stand_in import KERNEL

from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.fold_settings import fold_config, read_rungs
from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import to_dict
from vqa_utils.errors import RunError
from vqa_utils.planning.ladder import LadderError
from vqa_utils.running import runner
from vqa_utils.running.notebooks.execution import NotebookError
from vqa_utils.running.stages import Stage, Step

pytestmark = pytest.mark.slow

FOLDS = Stage("per_fold", writes=("fold{fold}/out.txt",), per_fold=True, trains=True)
LOOK = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from vqa_utils.artifacts.run import open_run
paths, config = open_run(run_id, fold)
out = paths.fold(fold).folder / "out.txt"
class OutOfMemoryError(RuntimeError): "Of the name of torch's, without its import."
"""
OUT_OF_MEMORY = (
    "raise OutOfMemoryError('CUDA out of memory. GPU 0 has a total capacity of 14.74 GiB')"
)
TWO = [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "3"}]


def fold_notebook(folder, *sources):
    """A notebook of one fold that has the fold's settings as `config`, and `out` to write to."""
    parameters = new_code_cell(
        "run_id: str = ''  # run\nfold: int = 0  # fold", metadata={"tags": ["parameters"]}
    )
    cells = [parameters, *map(new_code_cell, (LOOK, *sources))]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), folder / "per_fold.ipynb")


@pytest.fixture
def folds_run(small_run, tmp_path, monkeypatch):
    """A run whose notebook of folds is still to be written; its settings are on the disk.

    Its folds go one after the other, whatever this machine has.
    """
    make, paths, config = small_run
    monkeypatch.setattr(runner, "fold_environments", lambda config, folds: [])

    def run(*sources, folds=(0, 1), ladder=True, **changes):
        fold_notebook(tmp_path, *sources)
        settings = dataclasses.replace(config, **changes)
        write_json(paths.config, to_dict(settings))
        one = make(config=settings)
        one.ladder = ladder
        one.run([Step(FOLDS, fold) for fold in folds])
        return paths

    return run


def outputs(paths):
    return [(paths.fold(k).folder / "out.txt").read_text() for k in (0, 1)]


def test_memory_that_ran_out_takes_a_rung_in_a_fresh_kernel(folds_run, console):
    source = f"if config.micro_batch > 4: {OUT_OF_MEMORY}"
    paths = folds_run(
        source, "out.write_text(str(config.micro_batch))", use_gradient_checkpointing=True
    )
    assert outputs(paths) == ["4", "4"]
    archived = sorted(path.stem for path in paths.notebooks.iterdir())
    assert archived == [  # the second fold starts with the settings that the first one got to
        "per_fold-fold0",
        "per_fold-fold0-out-of-memory1",
        "per_fold-fold0-out-of-memory2",
        "per_fold-fold1",
    ]
    config = open_run("small", 1)[1]
    assert (config.micro_batch, config.accumulation) == (4, 4)
    assert open_run("small")[1].micro_batch == 16
    for rung in read_rungs(paths.fold(0)):
        assert str(rung) in console.file.getvalue()


def test_a_fold_that_was_stopped_goes_on_with_its_rung(folds_run):
    stop = "if not out.with_name('stopped').exists():\n out.with_name('stopped').touch()\n raise KeyError"
    source = f"if config.micro_batch > 8: {OUT_OF_MEMORY}"
    cells = (source, stop, "out.write_text(str(config.micro_batch))")
    with pytest.raises(NotebookError, match="KeyError"):
        folds_run(*cells, folds=(0,), use_gradient_checkpointing=True)
    paths = folds_run(*cells, folds=(0,), use_gradient_checkpointing=True, tta=2)
    config = fold_config(paths.fold(0), open_run("small")[1])
    assert (config.micro_batch, config.tta) == (8, 2)
    attempts = list(paths.notebooks.glob("per_fold-fold0-out-of-memory*"))
    assert len(attempts) == 1, "the rung is not taken twice"


def test_other_settings_of_the_training_start_a_fold_anew(folds_run):
    source = f"if config.micro_batch > 8: {OUT_OF_MEMORY}"
    write = "out.write_text(f'{config.micro_batch} {config.epochs:g}')"
    folds_run(source, write, folds=(0,), use_gradient_checkpointing=True)
    paths = folds_run(write, folds=(0,), use_gradient_checkpointing=True, epochs=7)
    assert (paths.fold(0).folder / "out.txt").read_text() == "16 7"
    assert not paths.fold(0).rungs.exists()
    (replaced,) = (paths.folder / "replaced").iterdir()
    kept = {path.name for path in (replaced / "fold0").iterdir()}
    assert kept == {"out.txt", "config.json", "rungs.json"}


def test_the_ladder_ends_where_nothing_saves_memory(folds_run):
    with pytest.raises(LadderError, match="GPU 0"):
        folds_run(OUT_OF_MEMORY, folds=(0,), micro_batch=2, lora_r=4)
    assert len(read_rungs(RunPaths("small").fold(0))) > 1


def test_a_run_without_the_ladder_ends_at_the_first_error(folds_run):
    with pytest.raises(NotebookError, match="per_fold-fold0 failed: OutOfMemoryError"):
        folds_run(OUT_OF_MEMORY, folds=(0,), ladder=False)
    assert read_rungs(RunPaths("small").fold(0)) == []


def test_another_error_takes_no_rung(folds_run):
    with pytest.raises(RunError, match="per_fold-fold1 failed: ValueError: not memory"):
        folds_run("if fold: raise ValueError('not memory')\nout.write_text('x')")
    assert not RunPaths("small").fold(1).rungs.exists()


def test_folds_that_have_a_gpu_each_are_told_which(folds_run, monkeypatch):
    monkeypatch.setattr(runner, "fold_environments", lambda config, folds: TWO)
    paths = folds_run("import os; out.write_text(os.environ['CUDA_VISIBLE_DEVICES'])")
    assert sorted(outputs(paths)) == ["2", "3"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ

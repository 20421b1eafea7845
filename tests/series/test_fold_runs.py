"""Steps of folds through the runner: rungs after memory ran out, and folds side by side."""

import dataclasses
import os

import nbformat
import pytest
from conftest import KERNEL
from nbformat.v4 import new_code_cell, new_notebook

from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import to_dict
from vqa_utils.errors import RunError
from vqa_utils.planning.gpus import T4, Gpu
from vqa_utils.planning.ladder import LadderError
from vqa_utils.presets import preset
from vqa_utils.running import execution, runner
from vqa_utils.running.execution import NotebookError
from vqa_utils.running.stages import Stage, Step

FOLDS = Stage("per_fold", writes=("fold{fold}/out.txt",), per_fold=True, trains=True)
LOOK = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom vqa_utils.artifacts.run import open_run\n"
)
LOOK += "paths, config = open_run(run_id, fold)\nout = paths.fold(fold).folder / 'out.txt'\nout.parent.mkdir(exist_ok=True)"


def fold_notebook(folder, *sources):
    """A notebook of one fold that has the run's settings as `config`, and where to write as `out`."""
    parameters = new_code_cell(
        "run_id: str = ''  # run\nfold: int = 0  # fold", metadata={"tags": ["parameters"]}
    )
    nbformat.write(
        new_notebook(cells=[parameters, *map(new_code_cell, (LOOK, *sources))], metadata=KERNEL),
        folder / "per_fold.ipynb",
    )


@pytest.fixture
def folds_run(small_run, tmp_path, monkeypatch):
    """A run whose notebook of folds is still to be written; its settings are on the disk, as a notebook reads them.

    Its folds go one after the other, whatever this machine has.
    """
    make, paths, config = small_run
    monkeypatch.setattr(runner, "fold_environments", lambda config, folds: [])

    def run(*sources, folds=(0, 1), **changes):
        fold_notebook(tmp_path, *sources)
        settings = dataclasses.replace(config, **changes)
        write_json(paths.config, to_dict(settings))
        make(config=settings).run([Step(FOLDS, fold) for fold in folds])
        return paths

    return run


OUT_OF_MEMORY = (
    "raise torch.OutOfMemoryError('CUDA out of memory. GPU 0 has a total capacity of 14.74 GiB')"
)


def test_memory_that_ran_out_takes_a_rung_in_a_fresh_kernel(folds_run, console):
    source = f"import torch\nif config.micro_batch > 4: {OUT_OF_MEMORY}\nout.write_text(str(config.micro_batch))"
    paths = folds_run(source, use_gradient_checkpointing=True)
    assert [(paths.fold(k).folder / "out.txt").read_text() for k in (0, 1)] == ["4", "4"]
    archived = sorted(path.name for path in paths.notebooks.iterdir())
    assert archived == [  # the second fold starts where the first one got to
        "per_fold-fold0-out-of-memory1.ipynb", "per_fold-fold0-out-of-memory2.ipynb", "per_fold-fold0.ipynb", "per_fold-fold1.ipynb"
    ]  # fmt: skip
    config = open_run("small", 1)[1]
    assert (config.micro_batch, config.accumulation) == (4, 4) and open_run("small")[
        1
    ].micro_batch == 16
    said = console.file.getvalue()
    assert (
        "per_fold-fold0         out of memory; GPU 0, training: micro-batch 16 -> 8 (saves" in said
    )
    assert "micro-batch 8 -> 4" in said


def test_the_ladders_end_and_a_run_without_it(folds_run, small_run):
    with pytest.raises(
        LadderError, match=r"GPU 0 ran out of memory in training, and nothing is left"
    ):
        folds_run(f"import torch\n{OUT_OF_MEMORY}", folds=(0,), micro_batch=2, lora_r=4)
    without = small_run[0]()
    without.ladder = False
    with pytest.raises(RunError, match="per_fold-fold0 failed: OutOfMemoryError"):
        without.run([Step(FOLDS, 0)])


def test_another_error_takes_no_rung(folds_run):
    with pytest.raises(RunError, match="per_fold-fold1 failed: ValueError: not memory"):
        folds_run("if fold: raise ValueError('not memory')\nout.write_text('x')")
    assert not RunPaths("small").fold(1).rungs.exists()


TWO = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
WAIT = """
import time
def wait_for(path):
    waited = time.time()
    while not path.exists():
        assert time.time() - waited < 60, f"{path.name} never came"
        time.sleep(0.1)
"""
MEET = (
    WAIT
    + """
import os
(paths.folder / f"here{fold}").touch()
wait_for(paths.folder / f"here{1 - fold}")
out.write_text(os.environ["CUDA_VISIBLE_DEVICES"])
"""
)


def test_folds_that_have_a_gpu_each_run_side_by_side(folds_run, monkeypatch):
    monkeypatch.setattr(
        runner,
        "fold_environments",
        lambda config, folds: [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "3"}],
    )
    paths = folds_run(MEET)
    assert sorted((paths.fold(k).folder / "out.txt").read_text() for k in (0, 1)) == ["2", "3"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_side_by_side_one_folds_error_waits_for_the_other(folds_run, monkeypatch):
    monkeypatch.setattr(runner, "fold_environments", lambda config, folds: TWO)
    with pytest.raises(NotebookError, match="per_fold-fold0 failed: ValueError: no"):
        folds_run(MEET, "if fold == 0: raise ValueError('no')")
    paths = RunPaths("small")
    assert (paths.stages / "per_fold-fold1.json").exists() and not (
        paths.stages / "per_fold-fold0.json"
    ).exists()


def test_a_folds_next_notebook_waits_for_no_other_fold(small_run, tmp_path, monkeypatch):
    """Fold 1 is scored while fold 2 trains, and after fold 1 was trained; both would wait in vain for whole stages."""
    make, paths, config = small_run
    monkeypatch.setattr(runner, "fold_environments", lambda config, folds: TWO)
    write_json(paths.config, to_dict(config))
    fold_notebook(
        tmp_path,
        WAIT + "if fold == 2: wait_for(paths.folder / 'scored1'); time.sleep(4)",
        "out.write_text('trained')",
    )
    (tmp_path / "per_fold.ipynb").rename(tmp_path / "train.ipynb")
    fold_notebook(
        tmp_path, "assert out.read_text() == 'trained'\n(paths.folder / f'scored{fold}').touch()"
    )
    (tmp_path / "per_fold.ipynb").rename(tmp_path / "score.ipynb")
    stages = [
        dataclasses.replace(FOLDS, name="train"),
        Stage("score", writes=("scored{fold}",), per_fold=True),
    ]
    make().run([Step(stage, fold) for stage in stages for fold in (0, 1, 2)])
    assert sorted(path.name for path in paths.folder.glob("scored*")) == [
        "scored0",
        "scored1",
        "scored2",
    ]


def test_what_folds_get(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for gpus, name, expected in [
        ([T4, T4], "dense_8b", ["0", "1"]), ([T4, T4], "single_gpu", ["0", "1"]), ([T4], "dense_8b", []), ([T4, T4], "safe", []),
        ([T4], "demo", []), ([T4, Gpu("K80", 4)], "dense_8b", ["0"]),
    ]:  # fmt: skip
        monkeypatch.setattr(execution, "find_gpus", lambda gpus=gpus: gpus)
        assert execution.fold_environments(preset(name), 3) == [
            {"CUDA_VISIBLE_DEVICES": number} for number in expected
        ]
    assert execution.fold_environments(preset("dense_8b"), 1) == []


@pytest.mark.parametrize(
    ("cores", "folds", "threads"),
    [(1, 3, []), (2, 3, ["1"] * 3), (2, 5, ["1"] * 3), (8, 3, ["2"] * 3), (8, 1, [])],
)
def test_without_a_gpu_folds_share_the_cores(cores, folds, threads, monkeypatch):
    monkeypatch.setattr(execution, "find_gpus", list)
    monkeypatch.setattr(execution, "cpu_count", lambda: cores)
    found = execution.fold_environments(preset("demo"), folds)
    assert found == [{"OMP_NUM_THREADS": number} for number in threads]

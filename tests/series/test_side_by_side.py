"""Folds side by side: on GPUs of their own, around one base, or on the cores."""

import contextlib
import threading
import time
from dataclasses import replace

import pytest

from vqa_utils.artifacts.files import write_text
from vqa_utils.planning.machine.gpus import T4, Gpu
from vqa_utils.presets import preset
from vqa_utils.running import runner
from vqa_utils.running.notebooks import attempts
from vqa_utils.running.notebooks import side_by_side as side_by_side_module
from vqa_utils.running.notebooks.execution import NotebookError, OutOfMemory
from vqa_utils.running.notebooks.processes import KernelDied, NodeLost
from vqa_utils.running.stages import Stage, Step
from vqa_utils.sharing.seats import Seats
from vqa_utils.sharing.shared_base import Sharing

pytestmark = pytest.mark.slow

TWO = [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "3"}]
PATIENCE = 60  # seconds until a wait in vain fails


@pytest.fixture
def side_by_side(small_run, monkeypatch):
    """Runs steps on two GPUs, with a function in place of each notebook's execution."""
    make, paths, config = small_run
    monkeypatch.setattr(runner, "fold_environments", lambda config, folds: TWO)

    def run(work, *stages, folds):
        def execute(name, archived, parameters, process, cell_timeout, following):
            fold = parameters["fold"]
            work(name, fold)
            write_text(paths.fold(fold).folder / f"{name}.txt", "whole")

        monkeypatch.setattr(attempts, "execute", execute)
        one = make(config=replace(config, **run.changes))
        run.clock = one.clock
        one.run([Step(stage, fold) for stage in stages for fold in folds])

    run.paths = paths
    run.changes = {}
    return run


TRAIN, SCORE = (
    Stage(name, writes=(f"fold{{fold}}/{name}.txt",), per_fold=True) for name in ("train", "score")
)


def test_folds_that_have_a_gpu_each_run_side_by_side(side_by_side):
    both_are_here = threading.Barrier(2)
    side_by_side(lambda name, fold: both_are_here.wait(PATIENCE), TRAIN, folds=(0, 1))
    assert all((side_by_side.paths.stages / f"train-fold{k}.json").exists() for k in (0, 1))
    assert side_by_side.clock.at_once() == 2


def test_side_by_side_one_folds_error_waits_for_the_other(side_by_side):
    failed = threading.Event()

    def work(name, fold):
        if fold == 0:
            failed.set()
            raise NotebookError("fold 0 failed")
        assert failed.wait(PATIENCE)

    with pytest.raises(NotebookError, match="fold 0 failed"):
        side_by_side(work, TRAIN, folds=(0, 1))
    markers = [path.name for path in side_by_side.paths.stages.iterdir()]
    assert markers == ["train-fold1.json"]


@pytest.mark.parametrize("waits", [True, False])
def test_a_refit_that_ends_where_folds_were_best_waits_for_them(side_by_side, waits):
    patience = 1 if waits else 0
    side_by_side.changes.update(n_folds=2, refit=True, patience=patience)
    trains = replace(TRAIN, trains=True)
    refit_has_begun = threading.Event()
    found = []

    def work(name, fold):
        if fold == 2:
            refit_has_begun.set()
        if (name, fold) == ("train", 1):  # fold 0's process is free soon
            found.append(refit_has_begun.wait(2 if waits else PATIENCE))

    side_by_side(work, trains, SCORE, folds=(0, 1, 2))
    assert found == [not waits] and refit_has_begun.is_set()


def test_a_folds_next_notebook_waits_for_no_other_fold(side_by_side):
    """Fold 1 is scored while fold 2 trains; whole stages one after the other would wait in vain."""
    fold_1_is_scored = threading.Event()
    done = []

    def work(name, fold):
        if (name, fold) == ("train", 2):
            assert fold_1_is_scored.wait(PATIENCE)
        done.append((name, fold))
        if (name, fold) == ("score", 1):
            fold_1_is_scored.set()

    side_by_side(work, TRAIN, SCORE, folds=(0, 1, 2))
    assert len(done) == 6
    for fold in (0, 1, 2):
        assert done.index(("train", fold)) < done.index(("score", fold))


def test_a_fold_goes_on_however_many_nodes_are_lost(side_by_side):
    lost = []

    def work(name, fold):
        if len(lost) < 3:
            lost.append(fold)
            raise NodeLost("train-fold0: its node was lost")

    side_by_side(work, TRAIN, folds=(0,))
    assert len(lost) == 3


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def around_one_base(side_by_side, monkeypatch):
    """As `side_by_side`, with two folds at a time on the same GPUs."""
    withdrawn = []
    imported = []
    seats = Seats(2)
    seats.open()
    sharing = Sharing(TWO, seats, 1, lambda: withdrawn.append(True))
    monkeypatch.setattr(runner, "shared_base", lambda *args: contextlib.nullcontext(sharing))
    monkeypatch.setattr(
        side_by_side_module,
        "import_ahead",
        lambda name, process, kernels: imported.append((name, kernels)),
    )
    side_by_side.withdrawn = withdrawn
    side_by_side.seats = seats
    side_by_side.imported = imported
    return side_by_side


def test_folds_around_one_base_are_fewer_after_memory_ran_out(around_one_base, console):
    """The first rung, before any settings: the fold goes on when the other has ended."""
    log = []
    both_are_here = threading.Barrier(2)

    def work(name, fold):
        is_first_attempt = f"start {fold}" not in log
        log.append(f"start {fold}")
        if fold < 2 and is_first_attempt:
            both_are_here.wait(PATIENCE)
        if fold == 1 and is_first_attempt:
            archived = around_one_base.paths.notebooks / f"{name}-fold1.ipynb"
            write_text(archived, "as it failed")
            raise NotebookError("out of memory", OutOfMemory(0, "training"))
        if fold == 0:
            wait_until(lambda: around_one_base.seats.count == 1)
        log.append(f"end {fold}")

    around_one_base(work, TRAIN, folds=(0, 1, 2))
    paths = around_one_base.paths
    # One at a time from here on: each start is followed by its own end
    after = log[log.index("end 0") + 1 :]
    pairs = list(zip(after[::2], after[1::2], strict=True))
    assert ("start 1", "end 1") in pairs
    assert all(start.split()[1] == end.split()[1] for start, end in pairs)
    assert around_one_base.clock.at_once() == 1
    assert not paths.fold(1).rungs.exists(), "no setting was changed"
    assert (paths.notebooks / "train-fold1-out-of-memory1.ipynb").exists()
    assert "one fold less at a time" in console.file.getvalue()


def test_the_last_fold_around_a_base_takes_the_ladder(around_one_base, monkeypatch):
    tried = []

    def work(name, fold):
        tried.append(fold)
        write_text(around_one_base.paths.notebooks / f"{name}-fold{fold}.ipynb", "as it failed")
        if len(tried) <= 2:
            raise NotebookError("out of memory", OutOfMemory(0, "training"))

    monkeypatch.setattr(attempts.Attempts, "_climb", lambda *args, **kwargs: tried.append("rung"))
    monkeypatch.setattr(attempts, "find_gpus", lambda: [T4, T4])
    monkeypatch.setattr(attempts, "is_placed_alike", lambda *args: False)
    around_one_base(work, TRAIN, folds=(0,))
    assert tried == [0, 0, "rung", 0]
    assert around_one_base.withdrawn == [True], "layers have moved: the base is of no use"
    names = [path.name for path in around_one_base.paths.notebooks.glob("*out-of-memory*")]
    assert sorted(names) == [f"train-fold0-out-of-memory{attempt}.ipynb" for attempt in (1, 2)]


def test_ctrl_c_leaves_folds_that_have_not_begun(side_by_side, monkeypatch):
    begun = []
    both_are_here = threading.Barrier(3)

    def interrupted(futures):
        both_are_here.wait(PATIENCE)
        raise KeyboardInterrupt

    def work(name, fold):
        begun.append(fold)
        both_are_here.wait(PATIENCE)

    monkeypatch.setattr(side_by_side_module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, TRAIN, folds=(0, 1, 2, 3))
    assert sorted(begun) == [0, 1]


def test_a_kernel_that_dies_as_it_imports_ahead_costs_no_fold(around_one_base, monkeypatch):
    done = []

    def dies(*args):
        raise KernelDied("the process that runs notebooks died")

    monkeypatch.setattr(side_by_side_module, "import_ahead", dies)
    around_one_base(lambda name, fold: done.append((name, fold)), TRAIN, SCORE, folds=(0, 1))
    assert len(done) == 4


def test_ctrl_c_lets_no_fold_begin_that_waits_for_a_seat(around_one_base, monkeypatch):
    begun = []
    seats = around_one_base.seats
    seats.limit(1)

    def interrupted(futures):
        wait_until(lambda: len(seats._queue) == 2 and begun)
        raise KeyboardInterrupt

    def work(name, fold):
        begun.append(fold)
        wait_until(lambda: seats._is_closed)

    monkeypatch.setattr(side_by_side_module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        around_one_base(work, TRAIN, folds=(0, 1, 2, 3))
    assert len(begun) == 1


def test_the_next_notebooks_imports_are_made_before_it_is_its_turn(around_one_base):
    """Before its seat, and before its fold's earlier notebook has ended; not for what is reused."""
    imported = around_one_base.imported
    seats = around_one_base.seats

    trained = []

    def work(name, fold):
        if name == "score":
            return
        trained.append(fold)  # with one seat, either fold may be the first
        if len(trained) == 1:
            wait_until(lambda: len(imported) == 2)
            assert len(seats._seated) == 1
        else:
            wait_until(lambda: any(name == "score" for name, _ in imported))

    seats.limit(1)
    around_one_base(work, TRAIN, SCORE, folds=(0, 1))
    # The last notebook has none after it
    assert sorted(imported) == [("score", 1), ("score", 2), ("train", 2), ("train", 2)]
    del imported[:]
    around_one_base(work, TRAIN, SCORE, folds=(0, 1))
    assert imported == []


@pytest.mark.parametrize(
    ("gpus", "name", "numbers"),
    [
        ([T4, T4], "dense_8b", ["0", "1"]),
        ([T4, T4], "single_gpu", ["0", "1"]),
        ([T4], "dense_8b", []),
        ([T4, T4], "safe", []),
        ([T4], "demo", []),
        ([T4, Gpu("K80", 4)], "dense_8b", []),
    ],
)
def test_a_fold_gets_a_gpu_that_holds_its_model(gpus, name, numbers, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(side_by_side_module, "find_gpus", lambda: gpus)
    expected = [{"CUDA_VISIBLE_DEVICES": number} for number in numbers]
    assert side_by_side_module.fold_environments(preset(name), 3) == expected


def test_one_fold_shares_its_gpus_with_none(monkeypatch):
    monkeypatch.setattr(side_by_side_module, "find_gpus", lambda: [T4, T4])
    assert side_by_side_module.fold_environments(preset("dense_8b"), 1) == []


@pytest.mark.parametrize(
    ("cores", "folds", "threads"),
    [(1, 3, []), (2, 3, ["1"] * 3), (2, 5, ["1"] * 3), (8, 3, ["2"] * 3), (8, 1, [])],
)
def test_without_a_gpu_folds_share_the_cores(cores, folds, threads, monkeypatch):
    monkeypatch.setattr(side_by_side_module, "find_gpus", list)
    monkeypatch.setattr(side_by_side_module, "cpu_count", lambda: cores)
    found = side_by_side_module.fold_environments(preset("demo"), folds)
    assert found == [{"OMP_NUM_THREADS": number} for number in threads]


@pytest.mark.parametrize(("at_once", "expected"), [("auto", 2), (3, 3)])
def test_without_a_gpu_memory_bounds_the_folds_at_once(at_once, expected, monkeypatch):
    monkeypatch.setattr(side_by_side_module, "find_gpus", list)
    monkeypatch.setattr(side_by_side_module, "cpu_count", lambda: 8)
    monkeypatch.setattr(side_by_side_module, "folds_on_cpu", lambda: 2)
    config = replace(preset("demo"), folds_at_once=at_once)
    assert len(side_by_side_module.fold_environments(config, 3)) == expected

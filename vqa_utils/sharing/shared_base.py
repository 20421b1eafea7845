"""Load a run's base once, and lend it to its folds: the driver's side."""

import contextlib
import functools
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe

from joblib import cpu_count
from rich.console import Console

from vqa_utils.artifacts.paths import ROOT, RunPaths, shown
from vqa_utils.config import Config
from vqa_utils.errors import RunError
from vqa_utils.planning.gpus import find_gpus
from vqa_utils.planning.plan import can_lend, fold_gpus, memory_plan
from vqa_utils.sharing.lent import LentBase
from vqa_utils.sharing.server import Server, receive_descriptors
from vqa_utils.sharing.turns import Turns

LENDER = (sys.executable, "-m", "vqa_utils.model.lending.lender")
LEAST_LENT = 10**9  # bytes; a smaller base is loaded in less time than a process takes to start
REFUSED = 3  # the lender's exit status where this machine cannot share memory


@contextlib.contextmanager
def shared_base(
    paths: RunPaths, config: Config, folds: int, console: Console
) -> Iterator[list[dict[str, str]]]:
    """Lend one base to folds while this is open, and let them take turns on the GPUs.

    Args:
        paths: the run, with its settings written.
        config: its settings.
        folds: the folds with notebooks to run.
        console: the terminal.

    Yields:
        The environments of the processes for folds at a time; [] if each fold loads for itself.

    Raises:
        RunError: the base could not be loaded; or the machine cannot share memory, and the settings
            want several folds at a time.
    """
    if folds < 2 or not _lends(config, folds):
        yield []
        return
    start = time.monotonic()
    try:
        base, descriptors = _load(paths)
    except SharingError as error:
        if config.sharing_folds > 1:
            raise RunError(
                f"folds_at_once={config.folds_at_once}: expected a machine whose processes can "
                f"share memory, found that they cannot ({error}); --set folds_at_once=1"
            ) from error
        console.print(f"each fold loads the base for itself: {error}", style="yellow", markup=False)
        yield []
        return
    at_once = min(config.sharing_folds, folds)
    console.print(
        f"base: loaded once, in {time.monotonic() - start:.0f} s, for {folds} folds, "
        f"{at_once} at a time"
    )
    turns = Turns(functools.partial(_report_stall, console))
    with Server(turns, base, descriptors) as server:
        environment = dict(server.environment)
        if not find_gpus():
            environment["OMP_NUM_THREADS"] = str(max(1, cpu_count() // at_once))
        yield [environment] * at_once
        console.print(f"base: lent to {server.lent} notebooks, each found its bytes unchanged")


class SharingError(RunError):
    """This machine's processes cannot share memory."""


@functools.cache
def sharing_problem(gpus: int) -> str:
    """Tell why this machine cannot lend a base on its first GPUs; "" if it can.

    It takes some seconds: a process of its own shares a page on each GPU.
    """
    answer = subprocess.run(
        [*LENDER, "test", str(gpus)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return "" if answer.returncode == 0 else _last_line(answer.stderr)


def _lends(config: Config, folds: int) -> bool:
    """Tell whether to load the base once.

    A base that a CPU trains is loaded in less time than a process takes to start; there,
    `folds_at_once` has to ask for it.
    """
    gpus = find_gpus()
    if not gpus:
        return config.sharing_folds > 1 and can_lend(config, None)
    plan = memory_plan(config, gpus)
    if plan is None or fold_gpus(config, folds, gpus):
        return False
    return can_lend(config, plan) and (config.sharing_folds > 1 or plan.weights >= LEAST_LENT)


def _load(paths: RunPaths) -> tuple[LentBase, list[int]]:
    """Let a process load and pack the base; return its description, and its blocks' descriptors.

    Raises:
        SharingError: the machine cannot share memory.
        RunError: the base could not be loaded.
    """
    ours, theirs = Pipe()
    log = paths.folder / "lender.log"
    with log.open("w") as output, theirs:
        lender = subprocess.Popen(
            [*LENDER, "lend", paths.run_id, str(theirs.fileno())],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            pass_fds=[theirs.fileno()],
        )
    try:
        with ours:  # closed, it ends the lender, whatever happens here
            base = LentBase.from_json(ours.recv_bytes().decode())
            descriptors = receive_descriptors(ours, len(base.blocks))
    except EOFError:
        problem = _last_line(log.read_text(encoding="utf-8"))
        if lender.wait() == REFUSED:
            raise SharingError(problem) from None
        raise RunError(f"the base could not be loaded: {problem}\nlog: {shown(log)}") from None
    finally:
        lender.wait()
    log.unlink()
    return base, descriptors


def _last_line(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines() or ["it ended without a word"]
    return lines[-1]


def _report_stall(console: Console, gpu: int, holder: str, waiting: str, seconds: float) -> None:
    console.print(
        f"{holder} has held GPU {gpu} while {waiting} waited for {seconds / 60:.0f} minutes; "
        "does it hang?",
        style="yellow",
        markup=False,
    )

"""Load a run's base once, and lend it to its folds: the driver's side."""

import contextlib
import functools
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from typing import NamedTuple

from joblib import cpu_count
from rich.console import Console

from vqa_utils.artifacts.paths import ROOT, RunPaths, shown
from vqa_utils.config import Config
from vqa_utils.errors import RunError
from vqa_utils.planning.gpus import Gpu, find_gpus
from vqa_utils.planning.plan import can_lend, fold_gpus, memory_plan, plan_for
from vqa_utils.sharing.lent import LentBase
from vqa_utils.sharing.server import Server, receive_descriptors
from vqa_utils.sharing.turns import Turns

LENDER = (sys.executable, "-m", "vqa_utils.model.lending.lender")
LEAST_LENT = 10**9  # bytes; a smaller base is loaded in less time than a process takes to start
ERROR = re.compile(r"[\w.]+(Error|Exception): ")  # the line of a traceback with its message


class Sharing(NamedTuple):
    """What folds around one base need of it."""

    environments: list[dict[str, str]]
    """Of the processes for folds at a time; [] if each fold loads for itself."""
    withdraw: Callable[[], None]
    """Lends no more: the folds that follow load for themselves."""


ALONE = Sharing([], lambda: None)


@contextlib.contextmanager
def shared_base(
    paths: RunPaths, config: Config, folds: Sequence[Config], console: Console
) -> Iterator[Sharing]:
    """Lend one base to folds while this is open, and let them take turns on the GPUs.

    Args:
        paths: the run, with its settings written.
        config: its settings.
        folds: the settings of each fold with notebooks to run.
        console: the terminal.

    Yields:
        `ALONE` if each fold loads for itself: one fold, folds that need another placement of the
        layers, or a lender that failed, whose reason is printed.
    """
    if len(folds) < 2 or not _lends(config, folds):
        yield ALONE
        return
    start = time.monotonic()
    try:
        base, descriptors = _load(paths)
    except LenderError as error:
        console.print(f"each fold loads the base for itself: {error}", style="yellow", markup=False)
        yield ALONE
        return
    at_once = min(config.sharing_folds, len(folds))
    console.print(
        f"base: loaded once, in {time.monotonic() - start:.0f} s, for {len(folds)} folds, "
        f"{at_once} at a time"
    )
    turns = Turns(functools.partial(_report_stall, console))
    with Server(turns, base, descriptors) as server:
        environment = dict(server.environment)
        if not find_gpus():
            environment["OMP_NUM_THREADS"] = str(max(1, cpu_count() // at_once))
        yield Sharing([environment] * at_once, server.withdraw)
        console.print(f"base: lent {server.lent} times, its bytes unchanged each time")


class LenderError(RunError):
    """The base was not loaded, or cannot be lent."""


@functools.cache
def sharing_problem(gpus: int) -> str:
    """Tell why this machine cannot lend a base on its first GPUs; "" if it can.

    It takes some seconds: a process of its own shares a page on each GPU.
    """
    answer = subprocess.run(
        [*LENDER, "test", str(gpus)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return "" if answer.returncode == 0 else _last_error(answer.stderr)


def _lends(config: Config, folds: Sequence[Config]) -> bool:
    """Tell whether to load the base once.

    A base that a CPU trains is loaded in less time than a process takes to start; there,
    `folds_at_once` has to ask for it.
    """
    gpus = find_gpus()
    if not gpus:
        return config.sharing_folds > 1 and can_lend(config, None)
    plan = memory_plan(config, gpus)
    if plan is None or not can_lend(config, plan):
        return False
    if len(fold_gpus(config, len(folds), gpus)) > 1:
        return False
    if config.sharing_folds == 1 and plan.weights < LEAST_LENT:
        return False
    # A rung after out of memory may have moved layers of a fold, or its experts to host memory
    return all(is_placed_alike(fold, config, gpus) for fold in folds)


def is_placed_alike(fold: Config, config: Config, gpus: Sequence[Gpu]) -> bool:
    """Tell whether a fold's plan puts the base where the run's does, and shares memory alike."""
    plan, of_run = plan_for(fold, gpus), plan_for(config, gpus)
    if plan.offloaded_layers != of_run.offloaded_layers:
        return False
    return plan.device_map == of_run.device_map and plan.gives_back == of_run.gives_back


def _load(paths: RunPaths) -> tuple[LentBase, list[int]]:
    """Let a process load and pack the base; return its description, and its blocks' descriptors.

    Raises:
        LenderError: with the last words of the lender, and its log.
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
        status = lender.wait()
        problem = _last_error(log.read_text(encoding="utf-8"))
        if status < 0:
            problem = f"the lender was killed by signal {-status}"
        raise LenderError(f"{problem} ({shown(log)})") from None
    finally:
        lender.wait()
    log.unlink()
    return base, descriptors


def _last_error(text: str) -> str:
    """Find the last line that names an error; the last line, if none does."""
    lines = text.strip().splitlines() or ["it ended without a word"]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines)[-1]


def _report_stall(console: Console, gpu: int, holder: str, waiting: str, seconds: float) -> None:
    console.print(
        f"{holder} has held GPU {gpu} while {waiting} waited for {seconds / 60:.0f} minutes; "
        "does it hang?",
        style="yellow",
        markup=False,
    )

"""Load a run's base once, and lend it to its folds: the driver's side."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from joblib import cpu_count
from rich.console import Console

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config
from vqa_utils.planning.machine.gpus import Gpu, find_gpus
from vqa_utils.planning.plan import can_lend, fold_gpus, memory_plan, plan_for
from vqa_utils.sharing.lender import Lender, LenderError, end_lender_ahead, new_lender
from vqa_utils.sharing.seats import Seats
from vqa_utils.sharing.server import Server
from vqa_utils.sharing.turns import Turns

LEAST_LENT = 10**9  # bytes; a smaller base is loaded in less time than a process takes to start


class Sharing(NamedTuple):
    """What folds around one base need of it."""

    environments: list[dict[str, str]]
    """Of the processes for folds at a time; [] if each fold loads for itself"""
    seats: Seats
    """Of the folds at a time."""
    kernels_ahead: int
    """Of each process, that start and import while a notebook is at work"""
    withdraw: Callable[[], None]
    """Lends no more: the folds that follow load for themselves."""


ALONE = Sharing([], Seats(1), 0, lambda: None)


@contextlib.contextmanager
def early_lender(
    paths: RunPaths, config: Config, folds: Sequence[Config], predict: str = ""
) -> Iterator[Lender | None]:
    """Load the base while notebooks that need no GPU run; None if `shared_base` lends none.

    Args:
        paths: the run, with its settings written.
        config: its settings.
        folds: the settings of each fold that will have notebooks to run.
        predict: a folder with another test.csv to answer.
    """
    lender = new_lender(paths, predict) if lends(config, folds) else None
    end_lender_ahead()
    try:
        yield lender
    finally:
        if lender:
            lender.close()


@contextlib.contextmanager
def shared_base(
    paths: RunPaths,
    config: Config,
    folds: Sequence[Config],
    console: Console,
    lender: Lender | None,
    predict: str = "",
) -> Iterator[Sharing]:
    """Lend one base to folds while this is open, and let them take turns on the GPUs.

    If the base cannot be loaded, the reason is printed, and folds load for themselves, one at a
    time.

    Args:
        paths: the run, with its settings written.
        config: its settings.
        folds: the settings of each fold with notebooks to run.
        console: the terminal.
        lender: of `early_lender`.
        predict: as of `early_lender`.

    Yields:
        `ALONE` if each fold loads for itself: one fold, or folds that need another placement of
        the layers.
    """
    if not lends(config, folds):
        if lender:
            lender.close()
        yield ALONE
        return
    lender = lender or new_lender(paths, predict)
    seats = Seats(min(config.sharing_folds, len(folds)))
    turns = Turns(functools.partial(_report_stall, console))
    with Server(turns) as server:
        environment = dict(server.environment)
        kernels_ahead = 1
        if not find_gpus():
            environment["OMP_NUM_THREADS"] = str(max(1, cpu_count() // seats.count))
            kernels_ahead = 0  # the cores are at work already
        lending = threading.Thread(
            target=_lend, args=(lender, server, seats, console, len(folds)), daemon=True
        )
        environments = [environment] * seats.count
        lending.start()
        try:
            yield Sharing(environments, seats, kernels_ahead, server.withdraw)
        finally:
            lender.stop()
            lending.join()
            lender.close()
        if server.lent:
            console.print(f"base: lent {server.lent} times, its bytes unchanged to the end")


def _lend(lender: Lender, server: Server, seats: Seats, console: Console, folds: int) -> None:
    """Lend the base once it is there; without one, let folds load for themselves, one at a time.

    Folds begin while the lender encodes pictures: they read their rows first, and wait for the base.
    """
    try:
        lender.wait_until_loaded()
        seats.open()
        base, descriptors = lender.receive()
        server.lend(base, descriptors)
        console.print(
            f"base: loaded once, in {base.seconds:.0f} s, for {folds} folds, {seats.count} at a time"
        )
    except (LenderError, OSError, ValueError) as error:
        seats.limit(1)
        server.withdraw()
        if not lender.is_stopped:
            console.print(
                f"each fold loads the base for itself: {error}", style="yellow", markup=False
            )
    finally:
        seats.open()


def lends(config: Config, folds: Sequence[Config]) -> bool:
    """Tell whether to load the base once, for these folds.

    A base that a CPU trains is loaded in less time than a process takes to start; there,
    `folds_at_once` has to ask for it.
    """
    if len(folds) < 2:
        return False
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


def _report_stall(console: Console, gpu: int, holder: str, waiting: str, seconds: float) -> None:
    console.print(
        f"{holder} has held GPU {gpu} while {waiting} waited for {seconds / 60:.0f} minutes; "
        "does it hang?",
        style="yellow",
        markup=False,
    )

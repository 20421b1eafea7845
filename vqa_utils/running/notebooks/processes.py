"""Keep a process for notebooks, with its share of the machine."""

import multiprocessing
import multiprocessing.util
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from vqa_utils.artifacts.stop import leave_signals_to_the_driver
from vqa_utils.errors import RunError
from vqa_utils.running.notebooks.kernels import end_kernels

Environment = dict[str, str]


class KernelDied(RunError):
    """A kernel, or the process that runs its notebook, has ended in the middle of a cell."""


class NodeLost(KernelDied):
    """The machine of a kernel has gone."""


class Process(Protocol):
    """Runs notebooks, here or on another machine."""

    def run(self, work: Callable[..., None], *args: Any, **options: Any) -> None:
        """Do work in the process, and wait for it."""

    def interrupt(self) -> None:
        """End the work, as the driver has got a Ctrl-C."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: object) -> None: ...


class NotebookProcess:
    """A process for notebooks, with its share of the machine; another one starts if it dies.

    papermill changes the working folder of its whole process, and kernels inherit the environment.
    """

    def __init__(self, environment: Environment):
        """Prepare it; it starts with its first work."""
        self._environment = environment
        self._pool = self._new_pool()

    def run(self, work: Callable[..., None], *args: Any, **options: Any) -> None:
        """Do work in the process, and wait for it.

        Raises:
            KernelDied: the process has ended meanwhile.
        """
        try:
            self._pool.submit(work, *args, **options).result()
        except BrokenProcessPool as error:
            self._pool.shutdown(wait=False)
            self._pool = self._new_pool()
            raise KernelDied("the process that runs notebooks died") from error

    def interrupt(self) -> None:
        """Do nothing: a terminal's Ctrl-C reaches all processes of this machine."""

    def __enter__(self) -> "NotebookProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),  # a fork beside threads can deadlock
            initializer=_take,
            initargs=(self._environment,),
        )


def _take(environment: Environment) -> None:
    os.environ.update(environment)
    leave_signals_to_the_driver()
    multiprocessing.util.Finalize(None, end_kernels, exitpriority=1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the driver ends, however it does; kernels end with their parents."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # only a `NotebookProcess` comes here
    parent.join()
    os._exit(1)

"""Execute one notebook through papermill, in this process or another."""

import functools
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from vqa_utils.artifacts.paths import NOTEBOOKS, shown
from vqa_utils.artifacts.stop import STEP, StopRequested
from vqa_utils.errors import RunError
from vqa_utils.planning.machine.disk import DiskFull, describe_full, is_full
from vqa_utils.planning.machine.host import LowestMemory
from vqa_utils.running.archive.notebooks import archive_name
from vqa_utils.running.notebooks.kernels import (
    KERNEL,
    QUIET,
    end_kernel,
    end_of,
    first_line,
    start_kernels,
    take_kernel,
)
from vqa_utils.running.notebooks.processes import KernelDied, Process

OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
)
# Functions in the traceback of an out-of-memory error, by phase; in others it is "training"
FUNCTIONS_OF_PHASE = {
    "scoring": ("evaluation_loop", "score_orders"),
    "loading": ("from_pretrained",),
}
# jupyter_client's words
NOT_STARTED = ("Kernel died before replying to kernel_info", "Kernel didn't respond in")
KERNEL_STARTS = 3  # tries
START_TIMEOUT = 60  # seconds of each


@dataclass(frozen=True)
class OutOfMemory:
    """The GPU and the phase of an out-of-memory error."""

    gpu: int
    phase: str
    """"training", "scoring" or "loading"."""


class NotebookStopped(RunError):
    """A notebook has ended early, as it was asked to."""


class NotebookError(RunError):
    """An error in a cell."""

    def __init__(self, message: str, out_of_memory: OutOfMemory | None = None):
        super().__init__(message)
        self.out_of_memory = out_of_memory

    def __reduce__(self) -> tuple[type, tuple[str, OutOfMemory | None]]:
        return type(self), (str(self), self.out_of_memory)  # it crosses processes


def import_ahead(name: str, process: Process, kernels: int) -> None:
    """Let so many kernels wait in a process, which import what a notebook imports.

    Args:
        name: the notebook's, without its ending.
        process: runs the next notebooks.
        kernels: how many.
    """
    process.run(start_kernels, NOTEBOOKS / f"{name}.ipynb", kernels)


def execute(
    name: str,
    archived: Path,
    parameters: dict[str, Any],
    process: Process | None = None,
    cell_timeout: float | None = None,
    following: str = "",
) -> None:
    """Run a notebook with papermill in `notebooks/`.

    The copy in the archive is written cell by cell, so a failing notebook is there too.

    Args:
        name: the notebook's, without its ending.
        archived: the copy.
        parameters: of its parameters cell.
        process: runs it; this process if not given.
        cell_timeout: the most seconds for a cell; None sets no limit.
        following: the name of a notebook for this process, whose kernel imports meanwhile.

    Raises:
        NotebookError: an error in a cell, or one that took too long.
        NotebookStopped: it was asked to stop.
        KernelDied: its kernel, or the process.
        DiskFull: a file of the run could not be written.
        RunError: an unknown parameter.
    """
    source = NOTEBOOKS / f"{name}.ipynb"
    ahead = NOTEBOOKS / f"{following}.ipynb" if following else None
    if process is None:
        _execute(source, archived, parameters, cell_timeout, ahead)
    else:
        if ahead:
            start_kernels(ahead, 1)
        with LowestMemory() as memory:
            try:
                process.run(_execute, source, archived, parameters, cell_timeout)
            except KernelDied as error:
                if isinstance(error.__cause__, BrokenProcessPool):
                    raise KernelDied(
                        f"{archived.stem}: {error}; {memory.lowest()}\nnotebook: {shown(archived)}"
                    ) from error
                raise


def _execute(
    source: Path,
    archived: Path,
    parameters: dict[str, Any],
    cell_timeout: float | None,
    ahead: Path | None = None,
) -> None:
    known = papermill.inspect_notebook(_as_it_is(source))
    # papermill would only warn, and the notebook run with its defaults
    unknown = sorted(parameters.keys() - known.keys())
    if unknown:
        raise RunError(
            f"{source.name}: expected some of the parameters {sorted(known)}, found {unknown}"
        )
    archived.parent.mkdir(parents=True, exist_ok=True)
    os.environ[STEP] = archived.stem

    try:
        with LowestMemory() as memory:
            run = functools.partial(_run_in_a_kernel, source, archived, parameters, cell_timeout)
            _until_its_kernel_starts(lambda: run(ahead, memory), archived)
    except (OSError, papermill.PapermillExecutionError) as error:
        if is_full(error):
            full = describe_full(archived, parameters.get("run_id"))
            reason = str(error).strip().splitlines()[-1]  # a cache elsewhere may be meant
            raise DiskFull(f"{archived.stem}: {full}\n{reason}") from error
        if isinstance(error, OSError):
            raise
        raise _error_in_a_cell(error, archived) from error


def _run_in_a_kernel(
    source: Path,
    archived: Path,
    parameters: dict[str, Any],
    cell_timeout: float | None,
    ahead: Path | None,
    memory: LowestMemory,
) -> None:
    kernel = take_kernel(archived.stem)
    if ahead:
        start_kernels(ahead, 1)
    try:
        papermill.execute_notebook(
            _as_it_is(source),
            _as_it_is(archive_name(archived, parameters)),
            parameters,
            cwd=str(source.parent),
            km=kernel,
            kernel_name=KERNEL,
            progress_bar=False,
            start_timeout=START_TIMEOUT,
            execution_timeout=math.ceil(cell_timeout) if cell_timeout else None,
            extra_arguments=[QUIET, first_line()],
        )
    except CellTimeoutError as error:
        raise NotebookError(
            f"{archived.stem}: a cell took longer than {cell_timeout:g} s (--cell-timeout)\n"
            f"notebook: {shown(archived)}"
        ) from error
    except DeadKernelError as error:
        raise KernelDied(
            f"{archived.stem}: its kernel died ({end_of(kernel)}); {memory.lowest()}\n"
            f"notebook: {shown(archived)}"
        ) from error
    finally:
        end_kernel(kernel)


def _error_in_a_cell(error: papermill.PapermillExecutionError, archived: Path) -> RunError:
    message = f"{archived.stem} failed: {error.ename}: {error.evalue}\nnotebook: {shown(archived)}"
    if error.ename == StopRequested.__name__:
        return NotebookStopped(message)
    ran_out = where_memory_ran_out(error.ename, error.evalue, error.traceback)
    return NotebookError(message, ran_out)


def _as_it_is(path: Path | str) -> str:
    """Write a path for papermill, which puts parameters in place of braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _until_its_kernel_starts(run: Callable[[], None], archived: Path) -> None:
    """Run a notebook, and again if its kernel has died, or hung, before the first cell.

    A kernel gets ports of a moment ago. Another one, started beside it, may have taken them since
    (nteract/papermill#511): then it ends with an error, or its threads keep it from its end.
    """
    for starts in range(1, KERNEL_STARTS + 1):
        try:
            run()
            return
        except RuntimeError as error:
            if not any(words in str(error) for words in NOT_STARTED):
                raise
            if starts == KERNEL_STARTS:
                raise RunError(
                    f"{archived.stem}: its kernel failed {starts} times as it started; its own "
                    "words stand above. Does `python -m ipykernel_launcher --version` work in this "
                    "environment?"
                ) from error


def where_memory_ran_out(kind: str, message: str, traceback: Sequence[str]) -> OutOfMemory | None:
    """The GPU and the phase of an out-of-memory error; None for another error.

    Args:
        kind: the error's class.
        message: the error's.
        traceback: the lines of the cell's output.
    """
    if not OUT_OF_MEMORY.search(f"{kind}: {message}"):
        return None
    number = re.search(r"GPU (\d+)", message)
    gpu = int(number[1]) if number else 0  # cuBLAS's message names no GPU
    text = "\n".join(traceback)
    for phase, functions in FUNCTIONS_OF_PHASE.items():
        if any(function in text for function in functions):
            return OutOfMemory(gpu, phase)
    return OutOfMemory(gpu, "training")

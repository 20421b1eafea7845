"""One notebook through papermill: executed into the archive, in this process or in one with its share of the machine."""

import functools
import multiprocessing
import os
import re
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papermill
from joblib import cpu_count
from nbclient.exceptions import DeadKernelError

from vqa_utils.artifacts.paths import NOTEBOOKS, shown
from vqa_utils.config import Config
from vqa_utils.errors import RunError
from vqa_utils.planning.gpus import find_gpus, visible_numbers
from vqa_utils.planning.plan import fold_gpus

OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
)
DIED_AT_THE_START = "Kernel died before replying to kernel_info"  # jupyter_client's words
KERNEL_STARTS = 3
Environment = dict[str, str]


@dataclass(frozen=True)
class OutOfMemory:
    """Where a GPU's memory ran out."""

    gpu: int
    phase: str


class NotebookError(RunError):
    """An error in a cell."""

    def __init__(self, message: str, out_of_memory: OutOfMemory | None = None):
        super().__init__(message)
        self.out_of_memory = out_of_memory

    def __reduce__(self) -> tuple[type, tuple[str, OutOfMemory | None]]:
        return type(self), (str(self), self.out_of_memory)  # it crosses processes


def fold_environments(config: Config, folds: int) -> list[Environment]:
    """The environments of the processes in which that many folds run side by side; one at the most where a fold needs it all.

    A fold gets a GPU that holds its model. Without any GPU, folds share the cores: small models with a thread each do more than one
    with all, and one fold more than there are cores keeps these busy until the last ends.
    """
    gpus = find_gpus()
    if gpus:
        numbers = visible_numbers(len(gpus))
        return [
            {"CUDA_VISIBLE_DEVICES": numbers[place]} for place in fold_gpus(config, folds, gpus)
        ]
    if folds < 2 or len(config.max_memory) > 1 or config.device_map != "plan":
        return []
    cores = cpu_count()
    share = min(folds, cores + 1) if cores > 1 else 0
    return [{"OMP_NUM_THREADS": str(max(1, cores // share))}] * share if share else []


def process_with(environment: Environment) -> Executor:
    """A process of its own for notebooks: papermill changes the folder of the whole process, and kernels inherit all of it."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        max_workers=1, mp_context=spawn, initializer=_take, initargs=(environment,)
    )


def _take(environment: Environment) -> None:
    os.environ.update(environment)


def execute(
    name: str, archived: Path, parameters: dict[str, Any], process: Executor | None = None
) -> None:
    """Run a notebook with papermill in `notebooks/`; the copy is written cell by cell, a failing one too.

    Args:
        name: the notebook's, without its ending.
        process: the one to run it in, of `process_with`; this one if none is given.

    Raises:
        NotebookError: an error in a cell.
        RunError: an unknown parameter, or a kernel that died.
    """
    source = NOTEBOOKS / f"{name}.ipynb"
    if process is None:
        _execute(source, archived, parameters)
    else:
        process.submit(_execute, source, archived, parameters).result()


def _execute(source: Path, archived: Path, parameters: dict[str, Any]) -> None:
    known = papermill.inspect_notebook(str(source))
    unknown = sorted(parameters.keys() - known.keys())
    if unknown:
        raise RunError(
            f"{source.name}: expected some of the parameters {sorted(known)}, found {unknown}"
        )
    archived.parent.mkdir(parents=True, exist_ok=True)
    run = functools.partial(
        papermill.execute_notebook,
        str(source), str(archived), parameters, cwd=str(source.parent), kernel_name="python3", progress_bar=False,
        # A kernel warns of its unencrypted port as it starts, and may call it an error that it is interrupted as it is shut down
        extra_arguments=["--log-level=CRITICAL"],
    )  # fmt: skip
    try:
        _until_its_kernel_starts(run, archived)
    except papermill.PapermillExecutionError as error:
        message = (
            f"{archived.stem} failed: {error.ename}: {error.evalue}\nnotebook: {shown(archived)}"
        )
        raise NotebookError(
            message, where_memory_ran_out(error.ename, error.evalue, error.traceback)
        ) from error
    except DeadKernelError as error:
        reason = "its kernel died, which mostly means that the machine's memory ran out"
        raise RunError(f"{archived.stem}: {reason}\nnotebook: {shown(archived)}") from error


def _until_its_kernel_starts(run: Callable[[], Any], archived: Path) -> None:
    """Run a notebook, anew where its kernel has died before the first cell.

    A kernel gets ports that were free a moment before, which another that starts beside it may have taken (nteract/papermill#511).
    """
    for starts in range(1, KERNEL_STARTS + 1):
        try:
            run()
            return
        except RuntimeError as error:
            if DIED_AT_THE_START not in str(error):
                raise
            if starts == KERNEL_STARTS:
                raise RunError(
                    f"{archived.stem}: its kernel died {starts} times as it started; what it said stands above. Does "
                    "`python -m ipykernel_launcher --version` work in this environment?"
                ) from error


def where_memory_ran_out(kind: str, message: str, traceback: list[str]) -> OutOfMemory | None:
    """The GPU and the phase of an out-of-memory error, from what a cell printed; None for another error."""
    if not OUT_OF_MEMORY.search(f"{kind}: {message}"):
        return None
    text = "\n".join(traceback)
    phases = {"scoring": ("evaluation_loop", "score_orders"), "loading": ("from_pretrained",)}
    phase = next(
        (phase for phase, signs in phases.items() if any(sign in text for sign in signs)),
        "training",
    )
    number = re.search(r"GPU (\d+)", message)
    return OutOfMemory(int(number[1]) if number else 0, phase)

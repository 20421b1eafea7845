"""One notebook through papermill: executed into the archive, in this process or in one that sees a single GPU."""

import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError

from vqa_utils.paths import NOTEBOOKS, shown
from vqa_utils.stages import RunError

OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED")


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


def execute(name: str, archived: Path, parameters: dict[str, Any], gpu: str | None = None) -> None:
    """Run a notebook with papermill in `notebooks/`; the copy is written cell by cell, a failing one too.

    Args:
        name: the notebook's, without its ending.
        gpu: the one that it may see, as CUDA numbers it; then it runs in a process of its own, as papermill changes the
            folder of the whole process.

    Raises:
        NotebookError: an error in a cell.
        RunError: an unknown parameter, or a kernel that died.
    """
    source = NOTEBOOKS / f"{name}.ipynb"
    if gpu is None:
        _execute(source, archived, parameters)
        return
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
        process.submit(_execute, source, archived, parameters, gpu).result()


def _execute(source: Path, archived: Path, parameters: dict[str, Any], gpu: str | None = None) -> None:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    known = papermill.inspect_notebook(str(source))
    unknown = sorted(parameters.keys() - known.keys())
    if unknown:
        raise RunError(f"{source.name}: expected some of the parameters {sorted(known)}, found {unknown}")
    archived.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(source), str(archived), parameters, cwd=str(source.parent), kernel_name="python3", progress_bar=False
        )
    except papermill.PapermillExecutionError as error:
        message = f"{archived.stem} failed: {error.ename}: {error.evalue}\nnotebook: {shown(archived)}"
        raise NotebookError(message, where_memory_ran_out(error.ename, error.evalue, error.traceback)) from error
    except DeadKernelError as error:
        reason = "its kernel died, which mostly means that the machine's memory ran out"
        raise RunError(f"{archived.stem}: {reason}\nnotebook: {shown(archived)}") from error


def where_memory_ran_out(kind: str, message: str, traceback: list[str]) -> OutOfMemory | None:
    """The GPU and the phase of an out-of-memory error, from what a cell printed; None for another error."""
    if not OUT_OF_MEMORY.search(f"{kind}: {message}"):
        return None
    text = "\n".join(traceback)
    phases = {"scoring": ("evaluation_loop", "score_options"), "loading": ("from_pretrained",)}
    phase = next((phase for phase, signs in phases.items() if any(sign in text for sign in signs)), "training")
    number = re.search(r"GPU (\d+)", message)
    return OutOfMemory(int(number[1]) if number else 0, phase)

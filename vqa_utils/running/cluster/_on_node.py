"""Run a notebook on a node: the node's side.

Where the node sees the driver's file, they share the folder of runs, and the notebook works there.
Else it works in a temporary folder, and the driver asks for changed files while it does:

    driver  -->  settings, folds, the fold's files (with its last checkpoint), requests to stop
    node    -->  train_log.csv, whole checkpoints, the notebook, signs of life, results
"""

import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vqa_utils.artifacts.paths import NOTEBOOKS, ROOT, RUNS_VARIABLE, RunPaths, runs_dir
from vqa_utils.artifacts.stop import VARIABLE, file_to_stop, leave_signals_to_the_driver
from vqa_utils.config import Config
from vqa_utils.errors import VqaError, problems_of
from vqa_utils.planning.machine.check import check_run
from vqa_utils.planning.machine.gpus import Gpu, find_gpus
from vqa_utils.running.archive.origin import Origin, origin_of
from vqa_utils.running.checking import check_rows
from vqa_utils.running.cluster._changes import Changes, Watch
from vqa_utils.running.notebooks.kernels import clean_environment
from vqa_utils.running.stages import TRAINING

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Job:
    """A step for a node."""

    runs: Path
    """the driver's folder of runs"""
    sign: str
    """the name of a file there, by which a node knows that it shares the folder"""
    run_id: str
    step: str
    fold: int
    gpus: int

    @property
    def inputs(self) -> list[str]:
        """What its notebook reads, as patterns below the folder of runs."""
        return [f"{self.run_id}/*.json", f"{self.run_id}/*.csv", self._fold_files]

    @property
    def outputs(self) -> list[str]:
        """What its notebook writes."""
        notebook = f"{self.run_id}/notebooks/{self.step}.ipynb"
        return [self._fold_files, notebook, f"{self._requests}@{self.step}"]

    @property
    def requests(self) -> list[str]:
        """The driver's requests to stop."""
        return [self._requests, f"{self._requests}@time"]

    @property
    def _fold_files(self) -> str:
        return f"{self.run_id}/fold{self.fold}/**/*"

    @property
    def _requests(self) -> str:
        return file_to_stop(RunPaths(self.run_id)).relative_to(runs_dir()).as_posix()


class Place(NamedTuple):
    """Where a step is at work."""

    node: str
    """Ray's id"""
    shares: bool
    """the driver's folder of runs is there"""


class Look(NamedTuple):
    """What a node has."""

    gpus: list[Gpu]
    """of a fold"""
    origin: Origin
    """what a training would run with"""


def look_here() -> Look:
    """Look at this node."""
    return Look(find_gpus(), origin_of(NOTEBOOKS / f"{TRAINING.name}.ipynb"))


def problems_here(config: Config) -> list[str]:
    """Check this node's memory, the model and the rows; return the problems."""
    checks = (
        functools.partial(check_run, config, find_gpus()),
        functools.partial(check_rows, config),
    )
    return problems_of(checks)


class OnNode:
    """A step's process on a node, as a Ray actor: one thread executes, another exchanges files."""

    def __init__(self, job: Job):
        self._job = job
        self._own: tempfile.TemporaryDirectory | None = None
        leave_signals_to_the_driver()
        clean_environment()
        if job.gpus:
            os.environ.pop(THREADS, None)  # Ray's: one thread, as a step asks for one CPU
        os.chdir(ROOT)
        # A node may mount the folder elsewhere
        self._runs = Path(os.environ.get(RUNS_VARIABLE) or job.runs)
        if not (self._runs / job.sign).exists():
            self._own = tempfile.TemporaryDirectory(prefix="vqa-")
            self._runs = Path(self._own.name)
        os.environ[RUNS_VARIABLE] = str(self._runs)
        requests = file_to_stop(RunPaths(job.run_id))
        requests.parent.mkdir(parents=True, exist_ok=True)  # for signs of life too
        os.environ[VARIABLE] = str(requests)
        self._watch = Watch(self._runs, job.outputs)

    def place(self) -> Place:
        """Say where this is."""
        import ray

        return Place(ray.get_runtime_context().get_node_id(), self._own is None)

    def take(self, inputs: Changes) -> None:
        """Write what the notebook reads."""
        inputs.apply(self._runs)
        self._watch.changes()  # known to the driver

    def exchange(self, requests: Changes) -> Changes:
        """Hear the driver's requests to stop; return what the notebook has written since."""
        requests.apply(self._runs)
        return self._watch.changes()

    def execute(self, work: Callable[..., None], *args: Any) -> None:
        """Do work with the driver's arguments, whose paths are translated.

        Raises:
            VqaError: the work's, with the driver's paths.
        """
        here = [self._here(arg) for arg in args]
        try:
            work(*here)
        except VqaError as error:
            error.args = (str(error).replace(str(self._runs), str(self._job.runs)), *error.args[1:])
            raise

    def close(self) -> None:
        """Delete the temporary folder."""
        if self._own:
            self._own.cleanup()

    def _here(self, arg: Any) -> Any:
        is_of_runs = isinstance(arg, Path) and arg.is_relative_to(self._job.runs)
        return self._runs / arg.relative_to(self._job.runs) if is_of_runs else arg

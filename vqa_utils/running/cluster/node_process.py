"""Run a notebook on a node: the driver's side."""

import contextlib
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from vqa_utils.artifacts.paths import runs_dir
from vqa_utils.artifacts.stop import ask_to_stop, asked_by
from vqa_utils.running.cluster._changes import Watch
from vqa_utils.running.cluster._on_node import Job, OnNode, Place
from vqa_utils.running.notebooks.execution import NotebookStopped
from vqa_utils.running.notebooks.processes import KernelDied, NodeLost

POLL_SECONDS = 1.0  # between exchanges of files with a node without shared storage
CLOSING_SECONDS = 10.0  # for a node to delete its temporary folder


class NodeProcess:
    """Runs the notebooks of folds on nodes, each in the next free place of the cluster."""

    def __init__(self, gpus: int):
        """Ask for so many GPUs, and for one CPU."""
        self._gpus = gpus

    def run(
        self,
        work: Callable[..., None],
        source: Path,
        archived: Path,
        parameters: dict[str, Any],
        *args: Any,
    ) -> None:
        """Execute a notebook on a node, and wait for it.

        Args:
            work: executes it.
            source: the notebook.
            archived: its copy.
            parameters: of its parameters cell.
            args: more of `work`.

        Raises:
            NodeLost: the node has gone meanwhile.
            KernelDied: the process on the node has ended.
            NotebookStopped: the run was asked to stop before there was a place.
        """
        with _sign() as sign:
            job = Job(
                runs_dir(),
                sign,
                run_id=parameters["run_id"],
                step=archived.stem,
                fold=parameters["fold"],
                gpus=self._gpus,
            )
            # Two threads: one executes the notebook, the other exchanges files
            remote: Any = ray.remote(OnNode)
            needs = {"num_cpus": 1, "num_gpus": self._gpus}
            actor = remote.options(**needs, max_concurrency=2, max_restarts=0).remote(job)
            place = None
            try:
                place = _wait_for_place(actor, job)
                _execute(actor, job, place, (work, source, archived, parameters, *args))
            except RayTaskError as error:
                raise error.cause from error
            except RayActorError as error:
                raise _death(actor, job, place, error) from error
            finally:
                ray.wait([actor.close.remote()], timeout=CLOSING_SECONDS)
                ray.kill(actor)

    def interrupt(self) -> None:
        """Ask the notebooks to stop: Ctrl-C reaches no other machine."""
        ask_to_stop(signal.SIGINT)

    def __enter__(self) -> "NodeProcess":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is left to end: each notebook has a process of its own."""


@contextlib.contextmanager
def _sign() -> Iterator[str]:
    """Write a file to the folder of runs that no copy of it has; yield its name below."""
    name = f".locks/shared-{secrets.token_hex(8)}"
    file = runs_dir() / name
    file.touch()
    try:
        yield name
    finally:
        file.unlink()


def _wait_for_place(actor: Any, job: Job) -> Place:
    place = actor.place.remote()
    while not ray.wait([place], timeout=POLL_SECONDS)[0]:
        if asked_by():
            raise NotebookStopped(f"{job.step}: the run was asked to stop")
    return ray.get(place)


def _execute(actor: Any, job: Job, place: Place, work: tuple[Any, ...]) -> None:
    """Execute work in an actor; without shared storage, exchange files with it meanwhile."""
    requests = Watch(job.runs, job.requests)

    def exchange() -> None:
        if not place.shares:
            ray.get(actor.exchange.remote(requests.changes())).apply(job.runs)

    if not place.shares:
        ray.get(actor.take.remote(Watch(job.runs, job.inputs).changes()))
    done = actor.execute.remote(*work)
    while not ray.wait([done], timeout=POLL_SECONDS)[0]:
        exchange()
    exchange()  # of a notebook that has failed too
    ray.get(done)


def _death(actor: Any, job: Job, place: Place | None, error: RayActorError) -> KernelDied:
    """Tell the death of a node from that of the process on it."""
    while isinstance(error, ActorUnavailableError):  # Ray does not know yet what has died
        time.sleep(POLL_SECONDS)
        try:
            ray.get(actor.place.remote())
            break  # it can be reached again, and the notebook's end would not be heard
        except RayActorError as later:
            error = later
    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if place is not None and place.node not in alive:
        return NodeLost(f"{job.step}: its node was lost")
    reason = str(error).strip().splitlines()[-1]
    return KernelDied(f"{job.step}: the process that runs its notebook died: {reason}")

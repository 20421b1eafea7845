"""Look at a cluster's nodes: places for folds, their GPUs, their problems."""

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from vqa_utils.artifacts.paths import NOTEBOOKS, ROOT
from vqa_utils.config import DEMO_MODEL_NAME, Config
from vqa_utils.errors import RunError
from vqa_utils.planning.machine.gpus import Gpu
from vqa_utils.running.archive.origin import differences, origin_of
from vqa_utils.running.cluster._on_node import look_here, problems_here
from vqa_utils.running.cluster.node_process import NodeProcess
from vqa_utils.running.stages import TRAINING

PATIENCE = 300  # seconds for a node's answer: its processes import first


@dataclass(frozen=True)
class Node:
    """A node with room for a fold."""

    name: str
    """its address"""
    key: str
    """Ray's id"""
    places: int
    """folds at a time"""


class RayCluster:
    """The nodes with room for a fold of a run.

    Attributes:
        gpus: those of a fold, where they have the least memory; [] for the demo.
    """

    def __init__(self, config: Config, console: Console):
        """Look at the nodes.

        Raises:
            RunError: none has room for a fold, or one has not the code.
        """
        self._console = console
        self._fold_gpus = gpus_of_fold(config)
        self._nodes = _nodes_with_room(self._fold_gpus)
        here = origin_of(NOTEBOOKS / f"{TRAINING.name}.ipynb")
        gpus: list[list[Gpu]] = []
        for node, look in self._ask(look_here):
            gpus.append(look.gpus)
            others = differences(here, look.origin)
            if others:
                line = f"node {node.name} has other code or libraries: {', '.join(others)}"
                console.print(line, style="yellow", markup=False)
        self.gpus = min(gpus, key=lambda of_node: sum(gpu.memory_gib for gpu in of_node))
        names = ", ".join(node.name for node in self._nodes)
        most = sum(node.places for node in self._nodes)
        console.print(f"cluster: {most} folds at a time at the most, on {names}", markup=False)

    def one_fold_a_place(self, config: Config) -> Config:
        """Let no folds share a base: each has GPUs of its own."""
        if config.sharing_folds > 1:
            line = f"folds_at_once=1, not {config.folds_at_once}: each has a place in the cluster"
            self._console.print(line, style="yellow")
        return replace(config, folds_at_once=1)

    def places(self, folds: int) -> int:
        """Count the folds at work at a time."""
        return min(folds, sum(node.places for node in self._nodes))

    def processes(self, folds: int) -> list[NodeProcess]:
        """Return what runs the notebooks of so many folds."""
        return [NodeProcess(self._fold_gpus) for _ in range(self.places(folds))]

    def check(self, config: Config) -> None:
        """Let each node check its memory, the model and the rows.

        Raises:
            RunError: with all problems, by node.
        """
        problems = []
        for node, found in self._ask(problems_here, config):
            problems += [f"node {node.name}: {problem}" for problem in found]
        if problems:
            raise RunError("\n".join(problems))

    def _ask(self, function: Callable[..., Any], *args: Any) -> list[tuple[Node, Any]]:
        """Call a function on each node, with the GPUs of a fold.

        Raises:
            RunError: a node has not the code, or does not answer.
        """
        answers = []
        for node in self._nodes:
            remote: Any = ray.remote(function)
            here = remote.options(
                num_cpus=1,
                num_gpus=self._fold_gpus,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.key, soft=False),
            )
            answers.append(here.remote(*args))
        return [
            (node, _answer_of(node, answer))
            for node, answer in zip(self._nodes, answers, strict=True)
        ]


@contextlib.contextmanager
def connected(address: str | None, config: Config, console: Console) -> Iterator[RayCluster]:
    """Connect to a cluster.

    Args:
        address: its head's; by default the cluster of this machine, or else this machine alone.
        config: the settings of the run.
        console: the terminal.

    Raises:
        RunError: there is no cluster, or none of its nodes has room for a fold.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RunError(
            f"--address {address}: expected the head of a Ray cluster that this machine has joined "
            f"(ray start), found none: {error}"
        ) from error
    signal.signal(signal.SIGTERM, on_sigterm)  # the run's own: Ray's ends this process at once
    try:
        yield RayCluster(config, console)
    finally:
        ray.shutdown()


def gpus_of_fold(config: Config) -> int:
    """Count the GPUs of a fold: those of `max_memory`, at least one; none for the demo."""
    return 0 if config.model == DEMO_MODEL_NAME else max(1, len(config.max_memory))


def _nodes_with_room(gpus: int) -> list[Node]:
    """List the nodes with so many GPUs, and a CPU.

    Raises:
        RunError: there is none.
    """
    nodes = []
    seen = []
    for each in ray.nodes():
        if not each["Alive"]:
            continue
        has_cpus, has_gpus = (int(each["Resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
        name = each["NodeManagerAddress"]
        seen.append(f"{name} with {has_cpus} CPUs and {has_gpus} GPUs")
        places = min(has_cpus, has_gpus // gpus) if gpus else has_cpus
        if places:
            nodes.append(Node(name, each["NodeID"], places))
    if not nodes:
        raise RunError(
            f"--executor ray: expected a node with 1 CPU and {gpus} GPUs for a fold, "
            f"found {', '.join(seen)}; start Ray on larger nodes, or take another preset"
        )
    return nodes


def _answer_of(node: Node, answer: ray.ObjectRef) -> Any:
    try:
        return ray.get(answer, timeout=PATIENCE)
    except GetTimeoutError as error:
        raise RunError(
            f"node {node.name}: expected an answer within {PATIENCE} seconds, found none; "
            "are its CPU and GPUs taken by another program of the cluster?"
        ) from error
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise RunError(
            f"node {node.name}: expected this repository at {ROOT} with its packages, "
            f"found {reason}"
        ) from error

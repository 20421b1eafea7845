"""Connect to a cluster where the command asks for one. Does not import Ray before."""

import argparse
import contextlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from vqa_utils.config import Config
from vqa_utils.errors import RunError
from vqa_utils.running.cluster.options import RAY

if TYPE_CHECKING:
    from vqa_utils.running.cluster.ray_cluster import RayCluster


@contextlib.contextmanager
def cluster_of(
    args: argparse.Namespace, config: Config, console: Console
) -> "Iterator[RayCluster | None]":
    """Connect to the cluster of a command; None if folds run on this machine.

    Args:
        args: run_all.py's.
        config: the settings of the run.
        console: the terminal.

    Raises:
        RunError: Ray is not installed, or there is no cluster with room for a fold.
    """
    if args.executor != RAY:
        if args.address is not None:
            raise RunError("--address: expected --executor ray beside it, found --executor local")
        yield None
        return
    if importlib.util.find_spec("ray") is None:
        raise RunError(
            "--executor ray: expected the package ray, found none in this Python; install it on "
            "every node (pip install ray), or leave out --executor"
        )
    from vqa_utils.running.cluster.ray_cluster import connected

    with connected(args.address, config, console) as cluster:
        yield cluster

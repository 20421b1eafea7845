"""A real Ray cluster on this machine, for tests: a head without CPUs, and two nodes with one each."""

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

ALL = os.environ.get("VQA_RAY") == "all"  # each night: both kinds of nodes, and all tests
SHARED, OWN = "shared", "own"  # own: the nodes do not see the driver's folder of runs
SMALL = {"object_store_memory": 100 * 2**20, "include_dashboard": False}


@contextlib.contextmanager
def two_nodes(**environment):
    """Start a cluster, with more variables of its nodes; nothing is left of it."""
    # Ray's own, and temporary ones of a lost node; short, as sockets have at most 107 letters
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    before = signal.getsignal(signal.SIGTERM)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_TMPDIR"] = str(folder)
    variables = {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    cluster = Cluster()
    try:
        for cpus in (0, 1, 1):
            cluster.add_node(num_cpus=cpus, **SMALL, env_vars=variables | environment)
        yield cluster
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, before)
        del os.environ["RAY_TMPDIR"]
        shutil.rmtree(folder)


def node_at_work(cluster, step):
    """Return the node with the kernel of a step; None before there is one."""
    for node in cluster.worker_nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in raylet.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.environ().get("VQA_STEP") == step and "ipykernel" in str(
                    process.cmdline()
                ):
                    return node
    return None

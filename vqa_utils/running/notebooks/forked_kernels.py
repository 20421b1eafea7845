"""Start kernels as forks of one process, which has imported for all of them: see `fork_server`."""

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelManager
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.planning.machine.gpus import find_gpus
from vqa_utils.sharing.server import socket_folder

SERVER = "vqa_utils.running.notebooks.fork_server"
LAUNCHER = "ipykernel_launcher"
# Names the server's process and its socket to those that run notebooks
VARIABLE = "VQA_FORK_SERVER"
SECONDS_BETWEEN = 0.05  # of two looks at a kernel that is to end

Environment = dict[str, str]


@contextlib.contextmanager
def forked_kernels(
    environments: list[Environment], notebooks: Iterable[Path]
) -> Iterator[list[Environment]]:
    """Let processes fork their kernels of one server while this is open.

    On Linux, and not where there is a GPU: CUDA does not survive a fork.

    Args:
        environments: of the processes.
        notebooks: kernels import what these do.

    Yields:
        The environments, with the server's name; as they are without a server.
    """
    is_alike = all(environment == environments[0] for environment in environments)
    if not environments or not is_alike or sys.platform != "linux" or find_gpus():
        yield environments
        return
    folder = socket_folder("vqa-kernels-")
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "socket"))
            listener.listen()  # before the server is there, so that nobody comes too early
            server = subprocess.Popen(
                [sys.executable, "-m", SERVER, str(listener.fileno()), *map(str, notebooks)],
                cwd=ROOT,
                env=os.environ | environments[0],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
            )
        name = f"{server.pid} {folder / 'socket'}"
        with server:
            try:
                yield [environment | {VARIABLE: name} for environment in environments]
            finally:
                server.kill()  # the processes that run notebooks have ended, and so have kernels
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parent_of_kernels() -> int:
    """Return the number of the process whose children this process's kernels are."""
    connection = _connection()
    return connection.server if connection else os.getpid()


def forked(kernel: AsyncKernelManager) -> AsyncKernelManager:
    """Let a kernel that has not started be a fork, if this process has a server."""
    connection = _connection()
    if connection is not None:
        kernel.kernel_id = str(uuid.uuid4())
        kernel.provisioner = ForkProvisioner(
            kernel_id=kernel.kernel_id, kernel_spec=kernel.kernel_spec, parent=kernel
        )
    return kernel


class Connection:
    """A connection to the fork server; the kernels that it has started end with it.

    Attributes:
        server: its process number.
    """

    def __init__(self, server: int, address: str):
        self.server = server
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        self._answers = self._socket.makefile("rb")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            OSError: the server has gone.
        """
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer = self._answers.readline()
        if not answer:
            raise ConnectionResetError("the fork server has ended")
        return json.loads(answer)


def _connection() -> Connection | None:
    """Return this process's connection to its server; None without one, or if it has gone."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    try:
        connection = _connected(name)
        connection.ask(pid=0)  # of no kernel: it answers if it is there
    except OSError:
        return None
    return connection


@functools.cache
def _connected(name: str) -> Connection:
    server, _, address = name.partition(" ")
    return Connection(int(server), address)


class ForkedProcess:
    """A kernel's process, with what jupyter_client asks of a Popen."""

    stdin = stdout = stderr = None

    def __init__(self, connection: Connection, argv: list[str], cwd: str, env: Environment):
        """Start it."""
        self._connection = connection
        self._status: int | None = None
        self.pid: int = connection.ask(argv=argv, cwd=cwd, env=env)["pid"]

    def poll(self) -> int | None:
        """Return its exit status, a signal's negative; None while it runs."""
        if self._status is None:
            try:
                self._status = self._connection.ask(pid=self.pid)["status"]
            except OSError:  # the server ends its kernels with it
                self._status = -signal.SIGKILL
        return self._status

    def wait(self) -> int:
        """Wait for its end; return its exit status."""
        while (status := self.poll()) is None:
            time.sleep(SECONDS_BETWEEN)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


class ForkProvisioner(LocalProvisioner):
    """Starts a kernel as a fork of the server, in place of a program of its own."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel of a command, `python ... -m ipykernel_launcher ARGUMENTS`."""
        connection = _connection()
        assert connection is not None  # `forked` has looked
        environment = {**kwargs["env"], "JPY_PARENT_PID": str(connection.server)}
        argv = cmd[cmd.index(LAUNCHER) :]
        cwd = kwargs.get("cwd") or str(Path.cwd())
        process = ForkedProcess(connection, argv, cwd, environment)
        self.process: Any = process
        self.pid = self.pgid = process.pid
        self.cwd = cwd
        return self.connection_info

"""Fork kernels that have imported by then, and share the memory of it. A program.

    python -m vqa_utils.running.notebooks.fork_server FD NOTEBOOK...

It imports what the notebooks import. FD is a socket that listens. A client's connection to it takes requests, a line of JSON each, and
gives an answer of a line to each:

    {"argv": [...], "cwd": "...", "env": {...}}   ->  {"pid": 7}         starts a kernel
    {"pid": 7}                                    ->  {"status": null}   tells how it ended, if it did

Kernels end with their client's connection, and all of it with standard input, which is the driver's.
Not on a GPU: CUDA does not survive a fork, and some libraries call it when they are imported.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from vqa_utils.artifacts.stop import leave_signals_to_the_driver
from vqa_utils.running.notebooks.forked_kernels import LAUNCHER
from vqa_utils.running.notebooks.kernels import import_code

KERNEL = "ipykernel.kernelapp"
BACKEND = "module://matplotlib_inline.backend_inline"  # of a notebook's figures, as kernels set it
MADV_PAGEOUT = 21  # of Linux's asm-generic/mman-common.h
SECONDS_BETWEEN = 0.2  # of two looks for kernels that have ended
Message = dict[str, Any]


class ForkServer:
    """Answers the requests of clients, in one thread: a fork copies no other.

    Attributes:
        kernels: the process numbers of each client's kernels.
        ended: the exit status of each kernel that has ended; a signal's is negative.
    """

    def __init__(self, listener: socket.socket):
        self.kernels: dict[socket.socket, list[int]] = {}
        self.ended: dict[int, int] = {}
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._received: dict[socket.socket, bytes] = {}

    def serve(self) -> None:
        """Answer until standard input ends; then end all kernels."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            self._reap()
            for key, _ in self._selector.select(SECONDS_BETWEEN):
                if key.fileobj is self._listener:
                    self._welcome()
                elif isinstance(key.fileobj, socket.socket):
                    self._hear(key.fileobj)
                else:  # the driver has closed its end, or has ended
                    for client in list(self.kernels):
                        self._leave(client)
                    return

    def _welcome(self) -> None:
        client, _ = self._listener.accept()
        self.kernels[client] = []
        self._received[client] = b""
        self._selector.register(client, selectors.EVENT_READ)

    def _hear(self, client: socket.socket) -> None:
        """Answer a client's requests, as far as they are there; a client that has gone says nothing."""
        try:
            heard = client.recv(2**16)
        except OSError:
            heard = b""
        if not heard:
            self._leave(client)
            return
        *lines, self._received[client] = (self._received[client] + heard).split(b"\n")
        for line in lines:
            answer = self._answer(client, json.loads(line))
            with contextlib.suppress(OSError):  # it has gone meanwhile: the next word is its end
                client.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, client: socket.socket, request: Message) -> Message:
        if "argv" not in request:
            return {"status": self.ended.get(request["pid"])}
        pid = os.fork()
        if pid == 0:
            self._become_kernel(request)
        self.kernels[client].append(pid)
        with contextlib.suppress(OSError):  # as the kernel does: whoever is first
            os.setpgid(pid, pid)
        return {"pid": pid}

    def _become_kernel(self, request: Message) -> NoReturn:
        """Run a kernel in this process, a fork, in a group of its own."""
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        self._selector.close()
        for opened in (self._listener, *self.kernels):
            opened.close()
        os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = request["argv"]
        runpy.run_module(LAUNCHER, run_name="__main__", alter_sys=True)
        sys.exit()

    def _reap(self) -> None:
        """Learn which kernels have ended."""
        with contextlib.suppress(ChildProcessError):  # there is none
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self.ended[pid] = os.waitstatus_to_exitcode(status)

    def _leave(self, client: socket.socket) -> None:
        """End a client's kernels."""
        self._selector.unregister(client)
        client.close()
        for pid in self.kernels.pop(client):
            if pid not in self.ended:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)


def drop_files() -> None:
    """Let go of the pages of libraries that importing has read; a kernel reads again what it needs.

    264 MiB of torch built for CUDA, which none of its kernels on a CPU has looked at since. Linux 5.4
    and later do so; what has been written to stays.
    """
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, inode, *_ = line.split()
        if inode != "0" and "w" not in permissions:
            start, end = (int(address, 16) for address in addresses.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_PAGEOUT)


def main(arguments: list[str]) -> None:
    """Run the program."""
    descriptor, *notebooks = arguments
    leave_signals_to_the_driver()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the driver's terminal
    with socket.socket(fileno=int(descriptor)) as listener:
        os.environ["MPLBACKEND"] = BACKEND  # matplotlib looks once
        importlib.import_module(KERNEL)  # clients wait meanwhile
        for notebook in notebooks:
            # What fails here fails in the notebook too, and is told there; a cell's ! is IPython's
            with contextlib.suppress(ImportError, SyntaxError):
                exec(import_code(Path(notebook)), {})
        gc.collect()
        gc.freeze()  # a collection would write to what is shared
        drop_files()
        ForkServer(listener).serve()
        # A driver that was killed leaves it behind
        shutil.rmtree(Path(listener.getsockname()).parent, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])

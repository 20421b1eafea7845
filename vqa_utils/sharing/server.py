"""Serve the folds of a run from the driver, which keeps the base's memory alive.

    lender (exits once it has lent)          driver                      a fold's kernel
    loads, packs into blocks of memory  -->  keeps a file descriptor --> maps the blocks, read-only
                                             of each block
                                             a queue for each GPU   <--> takes it, gives it back

Memory behind a descriptor lives as long as someone has the descriptor or a mapping of it. So the
lender's own CUDA memory is free while folds train, and nothing is left on a GPU when the driver
ends, however it ends.

The socket is a file that only this user can reach, and each connection has to know the run's key.
"""

import contextlib
import os
import secrets
import shutil
import socket
import tempfile
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from vqa_utils.sharing.lent import LentBase
from vqa_utils.sharing.turns import Turns

# Environment variables of a fold's process: the socket and its key
ADDRESS = "VQA_SHARING_ADDRESS"
KEY = "VQA_SHARING_KEY"
# Requests, each one message: a word, a space, and the base's key or the GPU's number
BASE, TAKE, GIVE = b"base", b"take", b"give"
GRANTED = b"granted"
STOPPED = 75  # exit status of a lender whose run was asked to stop
LOADED = b"loaded"  # the lender's first message; it encodes pictures and packs after it
LONGEST_PARENT = 70  # characters, of the folder of the socket's folder
DESCRIPTORS_AT_ONCE = 200  # in a message; Linux takes 253


class Server:
    """A socket, and a thread for each connection to it.

    Processes may ask for the base before it is there: they wait for `lend` or `withdraw`.

    Attributes:
        turns: on the GPUs.
        base: what is lent, if anything.
        descriptors: of the base's blocks, in their order; closed with the server.
        lent: how often the base was given away.
    """

    def __init__(self, turns: Turns):
        self.turns = turns
        self.base: LentBase | None = None
        self.descriptors: list[int] = []
        self.lent = 0
        self._has_loaded = threading.Event()
        self._folder = socket_folder("vqa-sharing-")
        self._key = secrets.token_bytes(32)
        address = str(self._folder / "socket")
        self._listener = Listener(address, "AF_UNIX", authkey=self._key)
        self._is_closed = False
        self.environment = {ADDRESS: address, KEY: self._key.hex()}
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Stop serving, and let go of the base."""
        self._is_closed = True
        with contextlib.suppress(OSError):  # wakes the thread that accepts connections
            socket.socket(socket.AF_UNIX).connect(self.environment[ADDRESS])
        self._listener.close()
        self.withdraw()
        shutil.rmtree(self._folder, ignore_errors=True)

    def lend(self, base: LentBase, descriptors: list[int]) -> None:
        """Lend a base from now on, to those who wait for it too."""
        self.base = base
        self.descriptors = descriptors
        self._has_loaded.set()

    def withdraw(self) -> None:
        """Lend no more: processes that have no mapping of the base load one for themselves."""
        self.base = None
        descriptors, self.descriptors = self.descriptors, []
        self._has_loaded.set()
        for descriptor in descriptors:
            os.close(descriptor)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except (AuthenticationError, EOFError, OSError):
                if self._is_closed:
                    return
                continue  # a stranger, or a process that has ended meanwhile
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        """Answer one process until it ends; what it holds is free then."""
        holder = ""
        try:
            holder = connection.recv_bytes().decode()
            while True:
                request, _, about = connection.recv_bytes().partition(b" ")
                if request == BASE:
                    self._send_base(connection, about.decode())
                elif request == TAKE:
                    self.turns.take(int(about), holder)
                    connection.send_bytes(GRANTED)
                elif request == GIVE:
                    self.turns.give(int(about), holder)
        except (EOFError, OSError):
            pass  # the process has ended
        finally:
            self.turns.leave(holder)
            connection.close()

    def _send_base(self, connection: Connection, key: str) -> None:
        """Send the base's description and descriptors; an empty message for another base."""
        self._has_loaded.wait()
        if self.base is None or self.base.key != key:
            connection.send_bytes(b"")
            return
        self.lent += 1
        connection.send_bytes(self.base.to_json().encode())
        send_descriptors(connection, self.descriptors)


def socket_folder(prefix: str) -> Path:
    """Make a temporary folder for a socket, for this user alone."""
    # Not below a long TMPDIR: a socket's path has 107 bytes
    parent = tempfile.gettempdir() if len(tempfile.gettempdir()) < LONGEST_PARENT else "/tmp"
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def send_descriptors(connection: Connection, descriptors: list[int]) -> None:
    """Send open files to another process, through the connection's socket."""
    with socket.socket(fileno=os.dup(connection.fileno())) as raw:
        for start in range(0, len(descriptors), DESCRIPTORS_AT_ONCE):
            socket.send_fds(raw, [b"d"], descriptors[start : start + DESCRIPTORS_AT_ONCE])


def receive_descriptors(connection: Connection, count: int) -> list[int]:
    """Receive what `send_descriptors` sent."""
    received: list[int] = []
    with socket.socket(fileno=os.dup(connection.fileno())) as raw:
        while len(received) < count:
            data, descriptors, _, _ = socket.recv_fds(raw, 1, DESCRIPTORS_AT_ONCE)
            if not data:
                raise EOFError
            received += descriptors
    return received

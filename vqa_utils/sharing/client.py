"""Ask the run's server from a fold's process: for the base, and for turns on the GPUs."""

import contextlib
import functools
import os
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection

from vqa_utils.artifacts.stop import STEP
from vqa_utils.errors import RunError
from vqa_utils.sharing.lent import LentBase
from vqa_utils.sharing.server import ADDRESS, BASE, GIVE, KEY, TAKE, receive_descriptors


def is_shared() -> bool:
    """Tell whether this process belongs to a run with a server."""
    return ADDRESS in os.environ


def lent_base(key: str) -> tuple[LentBase, list[int]] | None:
    """Ask for the run's base: its description, and a file descriptor for each of its blocks.

    It may still be loading; then this waits.

    Args:
        key: of the base that is needed.

    Returns:
        None without a server, or if it lends no such base.

    Raises:
        RunError: the server is gone.
    """
    if not is_shared():
        return None
    with _server_at_work() as connection:
        connection.send_bytes(b"%s %s" % (BASE, key.encode()))
        text = connection.recv_bytes().decode()
        if not text:
            return None
        base = LentBase.from_json(text)
        return base, receive_descriptors(connection, len(base.blocks))


def take(gpu: int) -> None:
    """Wait for this process's turn on a GPU.

    Raises:
        RunError: the server is gone.
    """
    with _server_at_work() as connection:
        connection.send_bytes(b"%s %d" % (TAKE, gpu))
        connection.recv_bytes()


def give(gpu: int) -> None:
    """End this process's turn on a GPU.

    Raises:
        RunError: the server is gone.
    """
    with _server_at_work() as connection:
        connection.send_bytes(b"%s %d" % (GIVE, gpu))


@functools.cache
def _connection() -> Connection:
    """Connect once; the server takes the end of the connection for the end of this process."""
    key = bytes.fromhex(os.environ[KEY])
    connection = Client(os.environ[ADDRESS], "AF_UNIX", authkey=key)
    name = os.environ.get(STEP, "a fold")
    connection.send_bytes(f"{name} ({os.getpid()})".encode())
    return connection


@contextlib.contextmanager
def _server_at_work() -> Iterator[Connection]:
    """Give the connection; an end of the server meanwhile is one sentence."""
    try:
        yield _connection()
    except (OSError, EOFError) as error:
        raise RunError(
            "expected the run's driver, which shares the base and the GPUs between its folds, to "
            "be at work, found it gone; python run_all.py --resume goes on"
        ) from error

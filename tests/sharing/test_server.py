"""A run's server and the processes of its folds."""

import os
import subprocess
import sys
import tempfile
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from vqa_utils.artifacts.stop import STEP
from vqa_utils.errors import RunError
from vqa_utils.sharing import client
from vqa_utils.sharing.lent import Block, LentBase, LentTensor
from vqa_utils.sharing.server import ADDRESS, KEY, Server
from vqa_utils.sharing.turns import Turns

PATIENCE = 60  # seconds until a wait in vain fails
BASE = LentBase(
    "a key",
    {"model_type": "qwen3_vl_moe"},
    (Block(None, 8, 7), Block(0, 16, 2**63)),
    {"a.weight": LentTensor(0, 0, "uint8", (2, 4))},
)


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Starts a server, and makes this process one of its folds."""
    servers = []

    def start(base=None, files=()):
        descriptors = [os.open(file, os.O_RDONLY) for file in files]
        server = Server(Turns(lambda *stall: None))
        servers.append(server)
        if base:
            server.lend(base, descriptors)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(STEP, "fold 0")
        client._connection.cache_clear()
        return server

    yield start
    client._connection.cache_clear()
    for server in servers:
        if not server._is_closed:
            server.close()


def test_no_server_lends_nothing_and_lets_nobody_wait(monkeypatch):
    monkeypatch.delenv(ADDRESS, raising=False)
    assert not client.is_shared() and client.lent_base("a key") is None


def test_a_description_survives_its_text():
    assert LentBase.from_json(BASE.to_json()) == BASE


def test_a_fold_gets_the_description_and_open_files(serve, tmp_path):
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.write_text(file.name)
    serve(BASE, files)
    for _ in range(2):  # a fold's two notebooks
        base, descriptors = client.lent_base("a key")
        assert base == BASE
        assert [os.pread(number, 10, 0).decode() for number in descriptors] == ["one", "two"]
        for number in descriptors:
            os.close(number)


def test_a_base_that_cannot_be_loaded_is_not_lent(serve):
    serve().withdraw()
    assert client.is_shared() and client.lent_base("a key") is None


def test_a_fold_waits_for_a_base_that_is_still_loading(serve):
    server = serve()
    found = []
    asking = threading.Thread(target=lambda: found.append(client.lent_base("a key")), daemon=True)
    asking.start()
    asking.join(0.1)
    assert asking.is_alive()
    server.lend(BASE, [os.open(os.devnull, os.O_RDONLY) for _ in BASE.blocks])
    asking.join(PATIENCE)
    ((base, _),) = found
    assert base == BASE


def test_a_base_of_another_key_and_one_withdrawn_are_not_lent(serve, tmp_path):
    file = tmp_path / "block"
    file.write_text("x")
    server = serve(BASE, [file, file])
    assert client.lent_base("another key") is None
    assert client.lent_base("a key") is not None
    (descriptor, _) = server.descriptors
    server.withdraw()
    assert client.lent_base("a key") is None and server.lent == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_closed_server_leaves_no_thread(serve):
    server = serve()
    assert server._accepting.is_alive()
    server.close()
    server._accepting.join(PATIENCE)
    assert not server._accepting.is_alive()


def test_a_long_folder_for_temporary_files_is_no_problem(serve, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    serve()
    client.take(0)
    client.give(0)
    assert not list(long.iterdir())


def test_a_stranger_is_refused_and_the_server_goes_on(serve):
    server = serve(BASE, [])
    with pytest.raises(AuthenticationError):
        Client(server.environment[ADDRESS], "AF_UNIX", authkey=b"guessed")
    client.take(0)
    client.give(0)


def test_the_socket_is_this_users_alone(serve):
    folder = Path(serve().environment[ADDRESS]).parent
    assert folder.stat().st_mode & 0o077 == 0


HOLDS = """
import os, sys, time
from vqa_utils.sharing import client
client.take(1)
print("holds", flush=True)
time.sleep(60)
"""


def test_a_killed_fold_holds_no_gpu(serve):
    server = serve()
    fold = subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, env={**os.environ, STEP: "killed"}
    )
    assert fold.stdout.readline() == b"holds\n"
    (holder,) = server.turns._queues[1]
    assert holder.startswith("killed")
    fold.kill()
    fold.wait()
    client.take(1)  # would wait for ever
    assert server.turns._queues[1][0].startswith("fold 0")


@pytest.mark.parametrize("ask", [lambda: client.take(0), lambda: client.lent_base("a key")])
def test_a_server_that_has_ended_is_told_in_one_sentence(monkeypatch, tmp_path, ask):
    monkeypatch.setenv(ADDRESS, str(tmp_path / "socket"))
    monkeypatch.setenv(KEY, "00")
    client._connection.cache_clear()
    with pytest.raises(RunError, match="--resume") as error:
        ask()
    assert "\n" not in str(error.value)

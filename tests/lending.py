"""Lend a base to the process of a test, as a run's driver does."""

import contextlib

import pytest

from vqa_utils.model.lending import attach
from vqa_utils.sharing import client
from vqa_utils.sharing.server import Server
from vqa_utils.sharing.turns import Turns


@contextlib.contextmanager
def lent_here(base, memories):
    """Yield the server that lends what `lender.lend` returned; afterwards this process has none."""
    with pytest.MonkeyPatch.context() as patch, Server(Turns(print)) as server:
        server.lend(base, [memory.export() for memory in memories])
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setattr(attach, "_mapped", [])
        _forget()
        yield server
    _forget()


def _forget():
    client._connection.cache_clear()
    attach._mapped_base.cache_clear()

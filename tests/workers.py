"""The processes that decode images for this one, in tests of a run that is told to stop."""

import re
import signal
import time
from pathlib import Path

import psutil

PATIENCE = 60  # seconds until a wait in vain fails


def terminate_workers():
    """Send SIGTERM to each, as a signal to all processes of a run does; return how many there are."""
    workers = psutil.Process().children()
    for worker in workers:
        deadline = time.monotonic() + PATIENCE
        while not _ignores_sigterm(worker.pid):  # it has only begun
            assert time.monotonic() < deadline
            time.sleep(0.01)
        worker.terminate()
    return len(workers)


def _ignores_sigterm(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = re.search(r"^SigIgn:\s*(\w+)", status, re.MULTILINE)
    return int(ignored[1], 16) >> (signal.SIGTERM - 1) & 1

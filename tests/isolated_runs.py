"""Give each process of the tests folders of its own, and each file of tests one process.

No test or notebook check touches a user's runs. The notebooks read each other's files: all of them
run in one process, in their order. No test leaves a process or a temporary file behind.
"""

import atexit
import contextlib
import gc
import os
import shutil
import tempfile
from pathlib import Path

import psutil
import pytest
from xdist.scheduler import LoadFileScheduling

# And names of tempfile's own, such as that of the connection file of a kernel that a test kills
OF_LIBRARIES = ("pytest-of-", "torchinductor_", "matplotlib-", "tmp")
PATIENCE = 60  # seconds for a process to end

folder = Path(tempfile.mkdtemp(prefix="vqa-tests-"))
temporary = folder / "tmp"
temporary.mkdir()
os.environ["VQA_RUNS_DIR"] = str(folder / "runs")
os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a process for each core
atexit.register(shutil.rmtree, folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind():
    """Fail with the names of what tests have left: processes, and temporary files."""
    before = set(psutil.Process().children(recursive=True))
    yield
    gc.collect()  # of a process pool, or a temporary folder
    processes = set(psutil.Process().children(recursive=True)) - before
    to_end = [process for process in processes if "resource_tracker" not in command_of(process)]
    _, alive = psutil.wait_procs(to_end, timeout=PATIENCE)
    left = [command_of(process)[:200] for process in alive]
    for path in temporary.iterdir():
        if not path.name.startswith(OF_LIBRARIES):
            left.append(f"temporary {path.name}")
    assert not left, left


def command_of(process: psutil.Process) -> str:
    """Return a process's command line; "" of one that has ended.

    Python's own keeper of shared memory, `resource_tracker`, ends with this process.
    """
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


class ByFile(LoadFileScheduling):
    """Hands out files, the notebooks as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "notebooks" if file.endswith(".ipynb") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Choose how tests are handed out."""
    return ByFile(config, log)

"""Give each process of the tests a runs folder of its own, and each file of tests one process.

No test or notebook check touches a user's runs. The notebooks read each other's files: all of them
run in one process, in their order.
"""

import atexit
import os
import shutil
import tempfile

import pytest
from xdist.scheduler import LoadFileScheduling

folder = tempfile.mkdtemp(prefix="vqa-test-runs-")
os.environ["VQA_RUNS_DIR"] = folder
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a process for each core
atexit.register(shutil.rmtree, folder, ignore_errors=True)


class ByFile(LoadFileScheduling):
    """Hands out files, the notebooks as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "notebooks" if file.endswith(".ipynb") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Choose how tests are handed out."""
    return ByFile(config, log)

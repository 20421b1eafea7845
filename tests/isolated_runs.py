"""Point the runs folder elsewhere, so that no test or notebook check touches a user's runs."""

import atexit
import os
import shutil
import tempfile

folder = tempfile.mkdtemp(prefix="vqa-test-runs-")
os.environ["VQA_RUNS_DIR"] = folder
os.environ.setdefault("HF_HUB_OFFLINE", "1")
atexit.register(shutil.rmtree, folder, ignore_errors=True)

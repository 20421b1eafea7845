"""A run whose processes are all killed, again and again, ends with the results of one that was not.

`VQA_KILLS=20 python -m pytest tests/series/test_kill.py` kills at so many moments drawn anew; the seed is
printed, and `VQA_KILL_SEED` draws the same ones again.
"""

import os
import random
import subprocess
import sys
import time

import psutil
import pytest
from korean_challenge import write_korean_challenge

from vqa_utils.artifacts.files import sha256
from vqa_utils.artifacts.paths import ROOT

pytestmark = pytest.mark.slow

SETTINGS = ["--set", "n_folds=2", "--set", "epochs=2", "--set", "micro_batch=2"]
SETTINGS += ["--set", "accumulation=2", "--set", "baselines=false"]
PATIENCE = 300  # seconds for a moment that does not come
LONGEST_WAIT = 25  # seconds of a drawn moment; the whole run takes longer


def appears(pattern):
    """The moment at which a file of the run is there; of a checkpoint, half of it may be."""

    def is_there(run):
        return any(run.glob(pattern))

    return is_there


def trains(run):
    logs = run.glob("fold*/train_log.csv")
    return any(len(log.read_bytes().splitlines()) > 2 for log in logs)


class After:
    """The moment so many seconds after the first look."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.begun = None

    def __call__(self, run):
        self.begun = self.begun or time.monotonic()
        return time.monotonic() - self.begun > self.seconds


FIXED = {
    "02 is executed": appears("notebooks/02_folds.ipynb"),
    "a fold trains": trains,
    "a checkpoint is written": appears("fold*/checkpoints/*/checkpoint-[3-9]*"),
    "an adapter is written": appears("fold*/adapter"),
    "a fold is scored": appears("fold*/probs_oof.csv"),
    "the ensemble is written": appears("ensemble/probs_oof.csv"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_korean_challenge(tmp_path_factory.mktemp("korean") / "data", train=16, test=5)


def started(folder, runs, *arguments):
    command = [sys.executable, "run_all.py", "--data", str(folder), "--run-id", "r", *arguments]
    # A kernel that is killed leaves its connection file
    environment = {**os.environ, "VQA_RUNS_DIR": str(runs), "TMPDIR": str(runs.parent)}
    log = (runs.parent / f"{runs.name}.log").open("a")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def kill_all(process):
    """SIGKILL to the driver and to all that it has started, as when a session is cut off."""
    tree = psutil.Process(process.pid)
    for each in [tree, *tree.children(recursive=True)]:
        each.kill()
    process.wait()


def results(run):
    """The hashes of adapters, probabilities, folds and submission, by name."""
    names = ("fold*/adapter/adapter_model.safetensors", "fold*/probs_*.csv", "folds.csv")
    files = [path for name in (*names, "submission_*.csv") for path in run.glob(name)]
    return {str(path.relative_to(run)): sha256(path) for path in files}


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    runs = tmp_path_factory.mktemp("whole") / "runs"
    runs.mkdir()
    assert started(folder, runs, *SETTINGS).wait() == 0
    found = results(runs / "r")
    assert len(found) == 8
    return found


def killed_run(folder, runs, moments):
    """Kill a run at each of the moments that come, and go on with it.

    Returns:
        Its results, and the names of the moments that came.
    """
    runs.mkdir()
    arguments = SETTINGS
    came = []
    for name, has_come in moments:
        process = started(folder, runs, *arguments)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and not has_come(runs / "r"):
            assert time.monotonic() < deadline, name
            time.sleep(0.005)
        if process.poll() is None:
            kill_all(process)
            came.append(name)
        if (runs / "r" / "config.json").exists():
            arguments = ["--resume"]
    assert started(folder, runs, *arguments).wait() == 0
    return results(runs / "r"), came


def test_a_run_that_is_killed_at_six_moments_ends_the_same(folder, uninterrupted, tmp_path):
    found, came = killed_run(folder, tmp_path / "runs", FIXED.items())
    assert found == uninterrupted and came == list(FIXED)


@pytest.mark.skipif("VQA_KILLS" not in os.environ, reason="moments drawn anew: each night")
def test_a_run_that_is_killed_at_any_moment_ends_the_same(folder, uninterrupted, tmp_path):
    seed = int(os.environ.get("VQA_KILL_SEED", time.time_ns() % 10**6))
    draw = random.Random(seed)
    moments = {}
    for _ in range(int(os.environ["VQA_KILLS"])):
        seconds = draw.uniform(0, LONGEST_WAIT)
        moments[f"after {seconds:.2f} s"] = After(seconds)
    print(f"VQA_KILL_SEED={seed}: {', '.join(moments)}")
    for number, moment in enumerate(moments.items()):
        found, _ = killed_run(folder, tmp_path / f"runs{number}", [moment])
        assert found == uninterrupted, f"VQA_KILL_SEED={seed}: {moment[0]}"

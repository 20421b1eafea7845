"""The series on machines of odd paths and without a home, and its tests from anywhere."""

import os
import shutil
import subprocess
import sys

import pytest
from korean_challenge import write_korean_challenge

from vqa_utils.artifacts.paths import ROOT

pytestmark = pytest.mark.slow

ODD = "눈 {run_id} [0] %s {"


def run(command, folder, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for name, value in environment.items():
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    found = subprocess.run(
        command, cwd=folder, env=kept, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the series below a folder of an odd name."""
    folder = tmp_path_factory.mktemp("odd") / ODD
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("vqa_utils", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    shutil.copy(ROOT / "run_all.py", folder)
    write_korean_challenge(folder.parent / f"{ODD} data" / ODD, train=8, test=4)
    return folder


@pytest.mark.parametrize(
    ("run_id", "environment"),
    [
        ("no-home", {"HOME": None}),
        ("ascii", {"HOME": "/dev/null", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}),
    ],
)
def test_a_notebook_runs_at_odd_paths_without_a_home(repository, run_id, environment):
    runs = repository.parent / f"{ODD} runs"
    data = repository.parent / f"{ODD} data" / ODD
    command = [sys.executable, "run_all.py", "--data", str(data), "--run-id", run_id]
    options = ["--only", "02_folds", "--set", "n_folds=2"]
    odd = {"VQA_RUNS_DIR": str(runs), "PYTHONUTF8": "1", **environment}
    run([*command, *options], repository, **odd)
    assert (runs / run_id / "folds.csv").exists()
    assert str(repository) not in (runs / run_id / "notebooks" / "02_folds.ipynb").read_text()
    again = [sys.executable, "run_all.py", "--resume", "--run-id", run_id, *options]
    assert "reused" in run(again, repository, **odd), "config.json leads to the data"


@pytest.mark.parametrize(
    ("folder", "tests"),
    [("/", "tests/test_prompts.py"), ("tests/data", "notebooks/02_folds.ipynb")],
)
def test_plain_pytest_works_from_any_folder_in_runs_of_its_own(folder, tests):
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-n", "0", "--collect-only"]
    found = run([*command, "--trace-config", str(ROOT / tests)], ROOT / folder)
    assert "tests.isolated_runs" in found and "tests collected" in found

"""Two commands do not work on one run at once."""

import os
import signal
import subprocess
import sys

import pytest

import run_all
from vqa_utils.artifacts.lock import locked
from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.errors import RunError
from vqa_utils.experiments.sweep_points import SweepError

HOLDS = """
import sys
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.lock import locked
with locked(RunPaths("r")):
    print("held", flush=True)
    sys.stdin.read()  # until this process is killed
"""


def test_a_run_that_another_command_works_on_is_left_alone_until_that_ends(
    stand_in, console, korean_folder, monkeypatch
):
    def command(*words):
        monkeypatch.setattr("sys.argv", ["run_all.py", "--run-id", "r", *words])
        run_all.run(run_all.parse_arguments(), console)

    new = ("--data", str(korean_folder), "--only", "01_eda")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="runs/r: "):
            command(*new)
        assert not stand_in.executed and not RunPaths("r").folder.exists()
        command("--dry-run", *new)  # which only looks
        with locked(RunPaths("another")):
            os.kill(holder.pid, signal.SIGKILL)
    command(*new)
    assert stand_in.executed == ["r 01_eda"]
    command("--resume", "--only", "01_eda")  # the first has let go of it


def test_a_sweep_leaves_a_point_that_another_command_works_on(
    stand_in, console, korean_folder, tmp_path, monkeypatch
):
    file = tmp_path / "s.yaml"
    file.write_text(f"data: {korean_folder}\nset: {{n_folds: 2}}\ngrid: {{ensemble: [mean, vote]}}")
    monkeypatch.setattr("sys.argv", ["run_all.py", "sweep", str(file)])
    with (
        locked(RunPaths("s-ensemble=vote")),
        pytest.raises(SweepError, match=r"(?s)1 of 2 .*runs/s-ensemble=vote: "),
    ):
        run_all.run(run_all.parse_arguments(), console)
    assert not RunPaths("s-ensemble=vote").folder.exists()

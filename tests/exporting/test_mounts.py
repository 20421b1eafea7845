"""The launcher runs where Kaggle's mounts are: read-only inputs, no network, 20 GB to write to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import ROOT, RUNS_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="mounts")]

LOOPBACK_ON = (
    "import fcntl, socket, struct;"
    "up = struct.pack('16sh14x', b'lo', 0x1 | 0x40);"  # IFF_UP, IFF_RUNNING
    "fcntl.ioctl(socket.socket(), 0x8914, up)"  # SIOCSIFFLAGS
)
MOUNTS = """
set -e
mount -t tmpfs tmpfs {top}
mkdir -p {top}/{writable}
mount -t tmpfs -o size=20g tmpfs {top}/{writable}
attach() {{
    [ -d "$1" ] && mkdir -p "$2" || touch "$2"
    mount --bind "$1" "$2"
    mount -o remount,bind,ro "$2"
}}
{attached}
{python} -c "{loopback_on}"
cd {top}/{writable}
status=0
{python} -m papermill --no-progress-bar {notebook} executed.ipynb || status=$?
cp -a . {output}
exit $status
"""


@pytest.fixture
def at(tmp_path):
    """Runs a notebook in namespaces of its own; returns its exit status and what it has become.

    `top` is a folder of the root, made for the time of the test.
    """
    made = []

    def run(top, writable, notebook, attached, output):
        output.mkdir()
        if not Path(top).is_dir():
            Path(top).mkdir()
            made.append(Path(top))
        lines = "\n".join(f"attach {folder} {mount}" for mount, folder in attached.items())
        script = MOUNTS.format(
            top=top,
            writable=writable,
            attached=lines,
            python=sys.executable,
            loopback_on=LOOPBACK_ON,
            notebook=notebook,
            output=output,
        )
        environment = {name: value for name, value in os.environ.items() if name != RUNS_VARIABLE}
        (tmp_path / "tmp").mkdir(exist_ok=True)
        environment["TMPDIR"] = str(tmp_path / "tmp")
        found = subprocess.run(
            ["unshare", "--mount", "--net", "bash", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if "unshare:" in found.stderr or "mount:" in found.stderr:
            pytest.skip(f"no mounts here: {found.stderr}")
        return found.returncode, (output / "executed.ipynb").read_text()

    yield run
    for top in made:
        top.rmdir()


@pytest.fixture
def exported(tmp_path):
    """The demo's export, whose notebook takes the settings that are given."""
    command = [sys.executable, "run_all.py", "export-kaggle", str(tmp_path / "export")]
    command += ["--user", "me", "--competition", "ssafy", "--set", "n_folds=2", "--set", "epochs=1"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    def with_settings(**settings):
        notebook = nbformat.read(tmp_path / "export/kernel/launcher.ipynb", as_version=4)
        lines = [f"{name} = {value!r}" for name, value in settings.items()]
        notebook.cells[1].source += "\n" + "\n".join(lines)
        path = tmp_path / "launcher.ipynb"
        nbformat.write(notebook, path)
        return path

    return tmp_path / "export/dataset", with_settings


def test_kaggle_stops_in_time_and_goes_on_in_the_next_session(
    at, exported, korean_folder, tmp_path
):
    dataset, with_settings = exported
    attached = {
        "/kaggle/input/datasets/me/two-gpu-vqa-code": dataset,
        "/kaggle/input/competitions/ssafy": korean_folder,
    }
    first, second = tmp_path / "first", tmp_path / "second"
    a_second = with_settings(HOURS=1 / 3600)
    status, executed = at("/kaggle", "working", a_second, attached, first)
    assert status == 1 and "the time budget is over" in executed
    (run,) = {file.parent.resolve() for file in (first / "runs").glob("*/config.json")}
    assert not (first / "submission.csv").exists()

    attached["/kaggle/input/notebooks/me/two-gpu-vqa"] = first
    status, executed = at("/kaggle", "working", with_settings(), attached, second)
    assert status == 0, executed
    assert read_json(second / "runs" / run.name / "config.json")["n_folds"] == 2
    asked, answered = (
        pd.read_csv(file) for file in (korean_folder / "test.csv", second / "submission.csv")
    )
    assert list(answered["id"]) == list(asked["id"])
    assert "reused" in executed, "what the first session has done is not done again"
    assert "Traceback" not in executed


def test_a_machine_that_is_not_the_exports_is_told_before_anything_is_done(
    at, exported, korean_folder, tmp_path
):
    dataset, with_settings = exported
    attached = {"/kaggle/input/code": dataset, "/kaggle/input/ssafy": korean_folder}
    status, executed = at("/kaggle", "working", with_settings(T4=2), attached, tmp_path / "out")
    assert status == 1 and "expected 2 T4" in executed and "found no GPU" in executed
    assert not (tmp_path / "out" / "runs").exists()


def test_colab_takes_zips_and_keeps_runs_on_the_drive(at, exported, korean_folder, tmp_path):
    dataset, with_settings = exported
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    shutil.make_archive(uploads / "code", "zip", dataset)
    shutil.make_archive(uploads / "challenge", "zip", korean_folder)
    attached = {
        "/content/code.zip": uploads / "code.zip",
        "/content/challenge.zip": uploads / "challenge.zip",
    }
    notebook = with_settings(HOURS=None, PRESET="demo")
    status, executed = at("/content", "drive/MyDrive", notebook, attached, tmp_path / "out")
    assert status == 0, executed
    assert len(pd.read_csv(tmp_path / "out" / "submission.csv")) == 8
    assert list((tmp_path / "out" / "runs").glob("*/submission_ensemble.csv"))

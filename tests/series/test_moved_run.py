"""A run that goes on in another place than the one where it began."""

import os
import shutil
import stat
import subprocess
import sys

import pytest

import run_all
from vqa_utils.artifacts.files import sha256
from vqa_utils.artifacts.paths import DEMO_MODEL, ROOT, RunPaths, runs_dir, shown
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.challenge import DataError
from vqa_utils.errors import RunError, VqaError
from vqa_utils.planning.source.check import source_of
from vqa_utils.planning.source.identity import hash_of_model
from vqa_utils.running import resolution

pytestmark = pytest.mark.slow


@pytest.fixture
def command(stand_in, console, monkeypatch):
    """Runs `run_all.py`; returns the run and the notebooks that were executed, and keeps the output."""

    def run(*words):
        stand_in.executed.clear()
        monkeypatch.setattr("sys.argv", ["run_all.py", *words])
        before = len(console.file.getvalue())
        run_all.run(run_all.parse_arguments(), console)
        run.printed = console.file.getvalue()[before:]
        return [name.split()[-1] for name in stand_in.executed]

    return run


@pytest.fixture
def data(korean_folder, tmp_path):
    """The challenge in a folder of its own, which may move."""
    return shutil.copytree(korean_folder, tmp_path / "data")


@pytest.fixture
def start(command, data):
    """Runs the series of two folds as the run `r`."""
    return lambda: command("--data", str(data), "--set", "n_folds=2", "--run-id", "r")


def move_runs(to, monkeypatch):
    runs_dir().rename(to)
    monkeypatch.setenv("VQA_RUNS_DIR", str(to))


def test_all_is_reused_where_runs_data_and_machine_are_others(
    command, start, data, tmp_path, monkeypatch
):
    assert len(start()) == 8
    move_runs(tmp_path / "elsewhere", monkeypatch)
    data = data.rename(tmp_path / "attached")
    assert command("--resume", "--data", str(data), "--cache-dir", str(tmp_path)) == []
    assert command("--resume", "--set", "num_workers=0", "--set", "folds_at_once=1") == []
    assert f"run r: {shown(RunPaths('r').folder)}" in command.printed


@pytest.fixture
def own_model(tmp_path):
    return shutil.copytree(DEMO_MODEL, tmp_path / "model")


def test_a_model_that_has_moved_is_known_by_its_weights(command, data, own_model, tmp_path):
    words = ["--data", str(data), "--set", "n_folds=2", "--run-id", "r"]
    assert len(command(*words, "--model", str(own_model))) == 8
    moved = own_model.rename(tmp_path / "attached")
    resume = ["--resume", "--run-id", "r"]
    with pytest.raises(VqaError, match=r"where it has moved, pass the new one"):
        command(*resume, "--force")
    assert command(*resume, "--model", str(moved)) == []
    assert command(*resume) == [], "it stays known there"
    shutil.copytree(moved, own_model)
    assert command(*resume, "--model", str(own_model)) == []
    assert open_run("r")[1].model_dir == "", "it is at its first place again"
    assert command(*resume, "--set", f"model_dir={moved}") == []

    other = shutil.copytree(moved, tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(VqaError, match=r"model_dir=.*: expected the files of .*, found another"):
        command(*resume, "--set", f"model_dir={other}")
    assert len(command(*resume, "--model", str(other))) == 8
    found = open_run("r")[1]
    assert found.model_dir == "" and source_of(found) == str(other)
    template = other / "chat_template.jinja"
    known = hash_of_model(other)
    template.write_text(template.read_text() + " ")
    assert hash_of_model(other) != known, "adapters have learned other prompts"


def test_a_run_knows_its_model_beside_another_home(command, data, own_model, tmp_path, monkeypatch):
    """The same folder below another home folder is the same setting."""
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--data", str(data), "--set", "n_folds=2", "--run-id", "r"]
    assert len(command(*words, "--model", str(own_model))) == 8
    home = tmp_path / "another"
    home.mkdir()
    own_model.rename(home / "model")
    monkeypatch.setenv("HOME", str(home))
    assert command("--resume", "--run-id", "r", "--data", str(data)) == []


def test_data_that_has_moved_is_found_where_kaggle_attaches_it(
    command, start, data, tmp_path, monkeypatch
):
    start()
    moved = tmp_path / "input" / "competitions" / "vqa"
    moved.parent.mkdir(parents=True)
    data.rename(moved)
    monkeypatch.setattr(resolution, "KAGGLE_INPUT", tmp_path / "input")
    assert command("--resume") == []
    assert f"data: {moved}" in command.printed
    shutil.copytree(moved, moved.with_name("other"))
    shutil.rmtree(moved)
    shutil.copytree(moved.with_name("other"), moved.with_name("third"))
    with pytest.raises(DataError, match=str(moved)):  # one of two is not taken at a guess
        command("--resume")


def test_without_links_the_newest_run_is_found(command, start, monkeypatch):
    start()
    (runs_dir() / "latest").unlink()

    def refuses(*args, **kwargs):
        raise OSError("Operation not permitted")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuses)
    assert command("--resume") == [] and f"run r: {shown(RunPaths('r').folder)}" in command.printed
    command("status")
    assert "run r" in command.printed and not (runs_dir() / "latest").exists()


def test_a_copy_of_the_link_is_no_run_and_stays(command, start):
    """`cp -rL`, a zip, and some drives make a folder of it."""
    start()
    latest = runs_dir() / "latest"
    latest.unlink()
    shutil.copytree(runs_dir() / "r", latest)
    (latest / "mine.txt").touch()
    assert command("--resume") == [] and f"run r: {shown(RunPaths('r').folder)}" in command.printed
    command("compare")
    assert "latest" not in command.printed
    assert (latest / "mine.txt").exists() and not latest.is_symlink()


def read_only(folder, is_read_only=True):
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o555 if path.is_dir() else 0o444) if is_read_only else 0o755)


@pytest.mark.parametrize("named", ["r", "."])
def test_a_run_of_another_session_is_taken_over(command, start, tmp_path, monkeypatch, named):
    """From a folder that cannot be written, named itself or the one above it."""
    start()
    shutil.rmtree(RunPaths("r").fold(1).folder)
    (RunPaths("r").stages / "04_infer-fold1.json").unlink()
    move_runs(tmp_path / "input", monkeypatch)
    read_only(tmp_path / "input")
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "working"))
    before = sha256(tmp_path / "input")
    executed = command("--resume-from", str(tmp_path / "input" / named))
    assert executed == ["03_train_fold-fold1", "04_infer-fold1"], "the rest has the same inputs"
    assert sha256(tmp_path / "input") == before
    assert not [path for path in runs_dir().iterdir() if path.name.startswith(".taking")]
    modes = [path.stat().st_mode for path in RunPaths("r").folder.rglob("*")]
    assert all(mode & stat.S_IWUSR for mode in modes)
    assert command("--resume") == [], "from here on it is a run as any other"
    with pytest.raises(RunError, match="--resume --run-id r goes on"):
        command("--resume-from", str(tmp_path / "input"))
    command("--resume-from", str(tmp_path / "input"), "--run-id", "beside")
    assert f"run beside: {shown(RunPaths('beside').folder)}" in command.printed
    read_only(tmp_path / "input", is_read_only=False)


def test_what_is_no_run_is_refused_before_anything_is_written(command, tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "working"))
    for folders in ([], ["a", "b/c"]):
        for folder in folders:
            (tmp_path / "input" / folder).mkdir(parents=True)
            for name in ("config.json", "provenance.json"):
                (tmp_path / "input" / folder / name).write_text("{}")
        seen = "b/c" if folders else "found none"
        with pytest.raises(RunError, match=f"expected the folder of one run.*{seen}"):
            command("--resume-from", str(tmp_path / "input"))
    with pytest.raises(RunError, match="--dry-run writes nothing"):
        command("--resume-from", str(tmp_path / "input" / "a"), "--dry-run")
    assert not (tmp_path / "working").exists()


def test_a_run_is_not_taken_over_into_a_disk_without_room(command, start, tmp_path, monkeypatch):
    start()
    move_runs(tmp_path / "input", monkeypatch)
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "working"))
    full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    with pytest.raises(RunError, match=r"expected room for the .* GiB free"):
        command("--resume-from", str(tmp_path / "input"))
    assert not RunPaths("r").folder.exists()


def test_a_copy_that_fails_leaves_nothing(command, start, tmp_path, monkeypatch):
    start()
    move_runs(tmp_path / "input", monkeypatch)
    read_only(tmp_path / "input")
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "working"))
    copy = shutil.copyfile

    def fails_late(source, target, **options):
        if str(source).endswith("meta.json"):
            raise OSError(28, "No space left on device")
        return copy(source, target, **options)

    monkeypatch.setattr("shutil.copyfile", fails_late)
    with pytest.raises(RunError, match=r"expected to copy .*No space left on device"):
        command("--resume-from", str(tmp_path / "input"))
    assert [path for path in runs_dir().rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    read_only(tmp_path / "input", is_read_only=False)


def test_a_copy_of_the_link_is_not_taken_for_a_second_run(command, start, tmp_path, monkeypatch):
    start()
    (runs_dir() / "latest").unlink()
    shutil.copytree(runs_dir() / "r", runs_dir() / "latest")
    shutil.copytree(runs_dir() / "r", runs_dir() / ".draft")
    move_runs(tmp_path / "input", monkeypatch)
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "working"))
    command("--resume-from", str(tmp_path / "input"))
    assert f"run r: {shown(RunPaths('r').folder)}" in command.printed
    shutil.copytree(runs_dir() / "r", runs_dir() / ".draft")
    command("compare")
    assert ".draft" not in command.printed
    odd = shutil.copytree(runs_dir() / "r", tmp_path / "my run (1)")
    with pytest.raises(RunError, match="name the run with --run-id"):
        command("--resume-from", str(odd))
    command("--resume-from", str(odd), "--run-id", "mine")
    assert f"run mine: {shown(RunPaths('mine').folder)}" in command.printed


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_mount_that_cannot_be_written_is_told_with_what_to_do(command, start, tmp_path):
    start()
    before = sha256(runs_dir())
    script = (
        f"mount --bind {runs_dir()} {runs_dir()} && mount -o remount,bind,ro {runs_dir()} && "
        f"{sys.executable} run_all.py --resume"
    )
    found = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=ROOT,
        env=os.environ | {"VQA_RUNS_DIR": str(runs_dir())},
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in found.stderr or "mount:" in found.stderr:
        pytest.skip(f"no mounts here: {found.stderr}")
    assert found.returncode == 1 and "Traceback" not in found.stdout + found.stderr
    words = " ".join(found.stdout.split())
    assert "(Read-only file system)" in words and "--resume-from" in words
    assert sha256(runs_dir()) == before


def test_a_folder_that_cannot_be_looked_through_is_told(command, tmp_path, monkeypatch):
    def fails(folder, pattern):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("pathlib.Path.glob", fails)
    with pytest.raises(RunError, match=f"--resume-from {tmp_path}: .*Permission denied"):
        command("--resume-from", str(tmp_path))

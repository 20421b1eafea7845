"""A disk that is full: one sentence, and nothing half-written."""

import errno
import os
import shutil
import subprocess

import pytest

import run_all
from vqa_utils.artifacts.files import read_json, write_json, write_text
from vqa_utils.artifacts.manifest import write_manifest
from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.planning.machine import disk
from vqa_utils.planning.machine.disk import (
    DiskFull,
    check_disk,
    describe_full,
    drop_half_written,
    is_full,
    run_bytes,
)
from vqa_utils.planning.machine.gpus import MachineError
from vqa_utils.presets import preset
from vqa_utils.running.archive import notebooks as archive
from vqa_utils.running.notebooks.execution import execute

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), True),
        (
            RuntimeError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            ),
            True,
        ),
        (RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0"), True),
        (
            RuntimeError("unable to allocate shared memory(shm): No space left on device (28)"),
            False,
        ),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), False),
        (RuntimeError("os error 2"), False),
    ],
)
def test_errors_of_a_full_disk_are_known(error, full):
    assert is_full(error) is full


def test_a_full_disk_is_told_by_its_nearest_folder(tmp_path):
    message = describe_full(tmp_path / "no" / "such", "r7")
    assert str(tmp_path) in message and "--resume --run-id r7" in message
    assert "no/such" not in message


def test_what_is_whole_stays_and_the_rest_goes(tmp_path):
    fold = FoldPaths(tmp_path / "fold0")
    whole, torn = (fold.checkpoints / "key" / f"checkpoint-{step}" for step in (4, 8))
    for checkpoint in (whole, torn):
        write_text(checkpoint / "optimizer.pt", "state")
    write_manifest(whole)
    write_text(fold.adapter / "adapter_model.safetensors", "half")
    drop_half_written(fold)
    assert whole.exists() and not torn.exists() and not fold.adapter.exists()
    write_text(fold.adapter / "adapter_model.safetensors", "whole")
    write_json(fold.meta, {})
    drop_half_written(fold)
    assert fold.adapter.exists()


@pytest.mark.slow
def test_a_notebook_that_cannot_be_written_stays_as_it_was(notebooks, tmp_path, monkeypatch):
    """The disk is full from the second cell on."""
    notebooks("writes", "print('one')", "print('two')")
    archived = tmp_path / "archive" / "writes.ipynb"
    written = []

    def write(path, text):
        if "one" in text and "two\\n" in text and written:
            raise FULL
        written.append(text)
        write_text(path, text)

    monkeypatch.setattr(archive, "write_text", write)
    with pytest.raises(DiskFull, match="writes"):
        execute("writes", archived, {"run_id": "r7"})
    assert archived.read_text() == written[-1]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [300, 380, 500])
def test_a_full_disk_leaves_whole_notebooks_and_no_temporaries(notebooks, small_disk, kilobytes):
    notebooks(
        "fills",
        "print('begun')",
        f"open({str(small_disk / 'big')!r}, 'wb').write(bytes({kilobytes} * 1024))",
        "print('x' * 200_000)",
    )
    archived = small_disk / "runs" / "r7" / "notebooks" / "fills.ipynb"
    with pytest.raises(DiskFull, match=r"fills: .* --run-id r7`"):
        execute("fills", archived, {"run_id": "r7"})
    assert "begun" in str(read_json(archived)["cells"])
    assert [path.name for path in archived.parent.iterdir()] == ["fills.ipynb"]


def test_a_command_says_in_one_sentence_that_the_disk_is_full(monkeypatch, capsys):
    def full(args, console):
        raise FULL

    monkeypatch.setattr("sys.argv", ["run_all.py", "--run-id", "r7"])
    monkeypatch.setattr(run_all, "run", full)
    with pytest.raises(SystemExit) as end:
        run_all.main()
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert said.startswith("error: ") and "--resume --run-id r7" in said


def test_a_run_that_its_disk_cannot_hold_is_refused(monkeypatch):
    config = preset("safe")
    needed = run_bytes(config, untrained=(0, 1, 2), at_once=2, rows=2000)
    total = sum(needed.values())
    monkeypatch.setattr(disk, "free_bytes", lambda paths: total)
    check_disk(RunPaths("r"), config, (0, 1, 2), 2, 2000)
    monkeypatch.setattr(disk, "free_bytes", lambda paths: total - 1)
    with pytest.raises(MachineError, match="checkpoints"):
        check_disk(RunPaths("r"), config, (0, 1, 2), 2, 2000)


def test_a_resumed_run_needs_room_for_what_is_left():
    config = preset("safe")
    of_all, of_one = (run_bytes(config, untrained, 2, 2000) for untrained in ((0, 1, 2), (2,)))
    assert of_one["adapters"] == of_all["adapters"] // 3
    assert of_one["checkpoints"] == of_all["checkpoints"] // 2
    assert run_bytes(config, (), 2, 2000)["checkpoints"] == 0


@pytest.mark.slow
def test_a_cell_that_finds_the_disk_full_is_told_as_that(notebooks, tmp_path):
    notebooks("raises", "raise RuntimeError('I/O error: No space left on device (os error 28)')")
    with pytest.raises(DiskFull, match=r"raises: .* --run-id r7`"):
        execute("raises", tmp_path / "archive" / "raises.ipynb", {"run_id": "r7"})

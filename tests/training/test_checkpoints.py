import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest

from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.manifest import MANIFEST, tear, write_manifest
from vqa_utils.training._checkpoints import STATE, Checkpoints, training_key

FILES = ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", STATE)


def test_checkpoints_of_other_settings_or_rows_are_not_resumed(config, challenge):
    train = challenge.train
    key = training_key(config, train)
    assert key == training_key(config, train.copy())
    assert key != training_key(dataclasses.replace(config, seed=1), train)
    assert key != training_key(config, train.head(3))
    assert key != training_key(config, train.assign(answer="a"))
    used_later = dataclasses.replace(config, score_batch=3, baselines=False)
    assert key == training_key(used_later, train)


@pytest.fixture
def saved(tmp_path):
    """Saves a checkpoint as the Trainer does."""

    def save(step, best=None):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for file in FILES:
            (folder / file).write_text(f"{file} of step {step}")
        state = {"global_step": step, "best_global_step": best}
        (folder / STATE).write_text(json.dumps(state))
        write_manifest(folder)
        return folder

    return save


def newest(folder):
    found = Checkpoints(folder).newest()
    return found and found.removeprefix(f"{folder}/")


def test_the_newest_whole_checkpoint_is_found(tmp_path, saved):
    assert newest(tmp_path / "none") is None
    for step in (200, 1000, 4):
        saved(step)
    assert newest(tmp_path) == "checkpoint-1000"


def empty(file):
    file.write_bytes(b"")


def half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other(file):
    file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))


def absent(file):
    file.unlink()


@pytest.mark.parametrize("spoil", [empty, half, other, absent])
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_torn_checkpoint_is_set_aside_and_named(tmp_path, saved, capsys, name, spoil):
    saved(4)
    spoil(saved(8) / name)
    assert newest(tmp_path) == "checkpoint-4"
    assert "checkpoint-8 is left out" in (said := capsys.readouterr().out) and name in said
    assert (tmp_path / "torn" / "checkpoint-8").is_dir()
    assert newest(tmp_path) == "checkpoint-4" and capsys.readouterr().out == ""
    spoil(saved(8) / name)  # the same once more
    assert newest(tmp_path) == "checkpoint-4"


def test_without_the_best_epochs_checkpoint_an_older_one_is_taken(tmp_path, saved, capsys):
    """The Trainer puts the best epoch's weights back at the end, so they have to be there."""
    saved(4)
    saved(8, best=8)
    saved(12, best=8)
    assert newest(tmp_path) == "checkpoint-12"
    half(tmp_path / "checkpoint-8" / "adapter_model.safetensors")
    assert newest(tmp_path) == "checkpoint-4"
    said = capsys.readouterr().out
    assert "checkpoint-12 is left out: the best epoch's checkpoint is torn" in said


@pytest.mark.parametrize("name", ["checkpoint-", "checkpoint-8 (1)", "checkpoint-best"])
def test_a_foreign_name_is_set_aside(tmp_path, saved, capsys, name):
    saved(4)
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / name)
    (tmp_path / "checkpoint-9").touch()  # a file
    assert newest(tmp_path) == "checkpoint-4"
    assert f"{name} is left out: it has a foreign name" in capsys.readouterr().out


def test_the_newest_checkpoint_and_the_best_epochs_are_kept(tmp_path, saved):
    """Older ones go once the newest is whole: a stop meanwhile finds them."""
    for step in (4, 8, 12):
        saved(step)
    newest_of_all = tmp_path / "checkpoint-16"
    newest_of_all.mkdir()
    (newest_of_all / STATE).write_text("{}")
    write_json(newest_of_all / "adapter_config.json", {"base_model_name_or_path": "a/base"})
    state = SimpleNamespace(global_step=16, max_steps=20, best_global_step=8)
    Checkpoints(tmp_path).on_save(None, state, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-16", "checkpoint-8"]
    assert tear(newest_of_all) == ""


def test_a_checkpoint_says_nothing_of_its_place(tmp_path, saved):
    folder = saved(16)
    state = {"best_global_step": 16, "best_model_checkpoint": str(folder)}
    (folder / STATE).write_text(json.dumps(state))
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": str(tmp_path / "base")})
    (folder / "training_args.bin").write_text(str(tmp_path))
    Checkpoints(tmp_path).on_save(
        None, SimpleNamespace(global_step=16, max_steps=20, best_global_step=16), None
    )
    for file in folder.iterdir():
        assert f'"{tmp_path}' not in file.read_text(), file.name
    assert not (folder / "training_args.bin").exists()
    assert tear(folder) == "", "the manifest is of the files as they are left"

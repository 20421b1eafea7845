"""The disk that a training takes, against what is planned for it."""

import dataclasses

import pytest
from bases import base_with_lora

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.planning.machine import disk
from vqa_utils.training._checkpoints import Checkpoints
from vqa_utils.training.fold import train_fold

pytestmark = pytest.mark.slow


def bytes_of(folder):
    return sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize("settings", [{}, {"lora_r": 32}, {"target_modules": ("q_proj",)}])
def test_adapters_and_checkpoints_take_the_disk_that_is_planned(
    config, encoder, challenge, tmp_path, monkeypatch, settings
):
    config = dataclasses.replace(config, **settings)
    sizes = []
    on_save = Checkpoints.on_save

    def saved(self, args, state, control, **kwargs):
        on_save(self, args, state, control, **kwargs)
        sizes.append(bytes_of(self.folder / f"checkpoint-{state.global_step}"))

    monkeypatch.setattr(Checkpoints, "on_save", saved)
    paths = FoldPaths(tmp_path / "fold0")
    rows = challenge.train.head(8), challenge.train.tail(4)
    train_fold(base_with_lora(config), config, encoder, *rows, paths)
    adapter = bytes_of(paths.adapter)
    assert adapter == pytest.approx(disk.adapter_bytes(config), abs=disk.SETTINGS_BYTES)
    planned = disk.checkpoint_bytes(config)
    assert len(sizes) == 2 and max(sizes) <= planned
    assert max(sizes) > planned - disk.LOG_BYTES - disk.SETTINGS_BYTES

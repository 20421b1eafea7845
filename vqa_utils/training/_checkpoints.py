"""Name a training's checkpoints, and find the newest one."""

import hashlib
import shutil
from pathlib import Path

import pandas as pd

from vqa_utils.config import Config


def training_key(config: Config, train: pd.DataFrame) -> str:
    """Name a training, in 12 hex digits: other settings, rows or answers have another name."""
    described = config.training_hash + train.to_csv(index=False)
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def last_whole_checkpoint(folder: Path) -> str | None:
    """Find the newest checkpoint with a Trainer's state, written last; remove torn ones."""
    newest = None
    newest_step = -1
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").exists():
            shutil.rmtree(checkpoint)
            continue
        # As a number: as text, checkpoint-1000 comes before checkpoint-200
        step = int(checkpoint.name.removeprefix("checkpoint-"))
        if step > newest_step:
            newest, newest_step = str(checkpoint), step
    return newest

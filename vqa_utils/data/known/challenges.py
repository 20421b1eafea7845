"""Name the challenges that `data` may be instead of a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vqa_utils.artifacts.paths import demo_data_dir, hard_data_dir
from vqa_utils.config import DEMO_DATA, HARD_DATA
from vqa_utils.data.known import easy_vqa, hard_vqa


@dataclass(frozen=True)
class KnownChallenge:
    """A challenge that `data` may name instead of a folder."""

    folder: Callable[[], Path]
    """Returns its folder; a function, because VQA_RUNS_DIR may move it."""
    write: Callable[[Path], Path]
    """Writes the usual files into a folder, unless they are there."""


KNOWN_CHALLENGES = {
    DEMO_DATA: KnownChallenge(demo_data_dir, easy_vqa.write_challenge),
    HARD_DATA: KnownChallenge(hard_data_dir, hard_vqa.write_challenge),
}


def data_dir(data: str) -> Path:
    """Return the folder that `data` names; a known challenge may not be written there yet."""
    if data in KNOWN_CHALLENGES:
        return KNOWN_CHALLENGES[data].folder()
    return Path(data)

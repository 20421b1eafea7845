"""Keep how far a run is, progress.json: its driver writes it, its page shows it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from vqa_utils.artifacts.files import TornFile, read_json, write_json
from vqa_utils.artifacts.paths import RunPaths

# States of a run
RUNNING = "running"
FINISHED = "finished"
FAILED = "failed"
STOPPED = "stopped"
# States of a notebook: also `RUNNING`, `FINISHED` and `STOPPED`
WAITING = "waiting"
LEFT_OUT = "left out"


@dataclass(frozen=True)
class PlannedGpu:
    """A GPU's memory by the plan."""

    name: str
    fold_gib: float
    """peak of the training of one fold, the base included"""
    run_gib: float
    """highest peak of the run, with all folds at a time"""
    limit_gib: float


@dataclass(frozen=True)
class RunProgress:
    """How far the last command of a run is. Times are seconds since 1970."""

    state: str
    started: float
    written: float
    steps: dict[str, str]
    """each notebook's state, in the order of the command"""
    message: str = ""
    """of a failure"""
    expected_end: float | None = None
    """None before the pace is known"""
    gpus: tuple[PlannedGpu, ...] = ()


def write_progress(paths: RunPaths, progress: RunProgress) -> None:
    """Write how far a run is."""
    write_json(paths.progress, dataclasses.asdict(progress))


def read_progress(paths: RunPaths) -> RunProgress | None:
    """Read how far a run is; None before its first command, or if the file is torn."""
    try:
        written: dict[str, Any] = read_json(paths.progress)
    except (FileNotFoundError, TornFile):
        return None
    gpus = tuple(PlannedGpu(**gpu) for gpu in written.pop("gpus"))
    return RunProgress(**written, gpus=gpus)

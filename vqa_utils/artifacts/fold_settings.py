"""A fold's settings: the run's, with what out-of-memory errors have changed for this fold."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vqa_utils.artifacts.files import read_json, write_json
from vqa_utils.config import Config

SHAPES_THE_ADAPTER = ("lora_r", "lora_alpha")  # a checkpoint of another rank cannot be gone on with


Changes = dict[str, Any]


@dataclass(frozen=True)
class Rung:
    """One change after an out-of-memory error."""

    name: str
    before: Changes
    after: Changes
    gpu: int
    phase: str
    """"training", "scoring" or "loading"."""
    saves_gib: float
    """On that GPU in that phase, by the plan."""
    passed_over: tuple[str, ...]
    """Rungs that would have saved nothing there."""

    def __str__(self) -> str:
        over = (
            f"; passed over, as they save nothing there: {', '.join(self.passed_over)}"
            if self.passed_over
            else ""
        )
        return f"GPU {self.gpu}, {self.phase}: {self.name} (saves {self.saves_gib:.2f} GiB by the plan{over})"


def climbed(config: Config, rungs: Sequence[Rung]) -> Config:
    """The settings after some rungs."""
    for rung in rungs:
        config = replace(config, **rung.after)
    return config


def resumable(config: Config, rungs: Sequence[Rung]) -> Config:
    """The settings that name a training across its rungs: those before them, with the adapter's own shape.

    A checkpoint of the same name can be gone on with.
    """
    for rung in reversed(rungs):
        config = replace(
            config,
            **{key: value for key, value in rung.before.items() if key not in SHAPES_THE_ADAPTER},
        )
    return config


def read_rungs(file: Path, config: Config) -> list[Rung]:
    """The rungs that a fold took under the run's settings `config`; none where those of the adapter have changed since."""
    return _read(file, "from", config)


def rungs_behind(file: Path, config: Config) -> list[Rung]:
    """The rungs that led to the fold's settings `config`; none where others did."""
    return _read(file, "to", config)


def write_rungs(file: Path, config: Config, rungs: Sequence[Rung]) -> None:
    """The inverse of `read_rungs`."""
    write_json(
        file,
        {
            "from": config.training_hash,
            "to": climbed(config, rungs).training_hash,
            "rungs": [asdict(rung) for rung in rungs],
        },
    )


def _read(file: Path, end: str, config: Config) -> list[Rung]:
    saved = read_json(file) if file.exists() else {}
    if saved.get(end) != config.training_hash:
        return []
    return [
        Rung(**{key: _with_tuples(value) for key, value in rung.items()}) for rung in saved["rungs"]
    ]


def _with_tuples(value: Any) -> Any:
    """JSON has lists where a setting has a tuple."""
    if isinstance(value, dict):
        return {key: _with_tuples(part) for key, part in value.items()}
    return tuple(value) if isinstance(value, list) else value

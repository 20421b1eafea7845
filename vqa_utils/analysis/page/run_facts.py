"""Read how a run was made: settings, folds, notebooks, versions."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vqa_utils.analysis.page.progress import FINISHED, STOPPED, RunProgress
from vqa_utils.artifacts.files import TornFile, is_current, read_json
from vqa_utils.artifacts.fold_settings import read_rungs
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.places import portable
from vqa_utils.artifacts.timings import seconds_of
from vqa_utils.config import SETTINGS, Config
from vqa_utils.forecasting.pace import fold_log
from vqa_utils.presets import differences
from vqa_utils.setting_types import setting_text

LOG_COLUMNS = ["step", "max_steps", "epoch", "loss", "memory_gib"]
COMMIT_DIGITS = 12


@dataclass(frozen=True)
class LastStep:
    """The latest step of a training."""

    step: int
    max_steps: int
    loss: float
    memory_gib: float
    """highest peak by then, of all GPUs together"""
    seconds_left: float | None
    """None before the pace is known"""


@dataclass(frozen=True)
class FoldFacts:
    """The training of one adapter, as far as it is."""

    number: int
    is_refit: bool
    is_trained: bool
    losses: list[tuple[float, float]]
    """epoch and loss of each step"""
    epochs: list[dict[str, float]]
    """`epoch`, `accuracy`, `log_loss` on the held-out rows"""
    peaks_gib: list[float]
    """of each GPU, or of the process; empty before it is trained"""
    last: LastStep | None
    rungs: list[str]
    """the changes after out-of-memory errors, in words"""


@dataclass(frozen=True)
class Notebook:
    """An executed notebook, or one that waits."""

    name: str
    state: str
    seconds: float
    """0 before it has ended"""
    file: str
    """the archived copy to read, as HTML where that is current; "" before there is one"""
    is_earlier: bool
    """an attempt that ended early, beside a later one"""


@dataclass(frozen=True)
class SettingLine:
    """A setting of the run."""

    name: str
    value: str
    meaning: str
    is_changed: bool
    """from the preset"""


def folds_of(paths: RunPaths, config: Config) -> list[FoldFacts]:
    """Read the trainings that have begun."""
    folds = []
    for number in config.adapter_numbers:
        fold = paths.fold(number)
        meta = _json(fold.meta)
        log = _training_log(fold.train_log)
        if not meta and log.empty:
            continue
        last = None
        if not log.empty:
            last = _last_step(log, None if meta else _seconds_left(fold.train_log))
        facts = FoldFacts(
            number=number,
            is_refit=number not in config.fold_numbers,
            is_trained=bool(meta),
            losses=list(zip(log["epoch"], log["loss"], strict=True)),
            epochs=meta.get("epochs") or [],
            peaks_gib=meta.get("peak_memory_gib") or [],
            last=last,
            rungs=[str(rung) for rung in read_rungs(fold)],
        )
        folds.append(facts)
    return folds


def notebooks_of(paths: RunPaths, progress: RunProgress | None) -> list[Notebook]:
    """List the notebooks of the last command and all archived ones, by their names."""
    states = progress.steps if progress else {}
    archived = {}
    for file in paths.notebooks.glob("*.ipynb"):
        html = file.with_suffix(".html")
        archived[file.stem] = html.name if is_current(html, file) else file.name
    notebooks = []
    for name in sorted({*states, *archived}):
        seconds = seconds_of(paths.notebooks, [name])
        state = states.get(name) or (FINISHED if seconds else STOPPED)
        is_earlier = "-out-of-memory" in name or "-died" in name
        notebooks.append(Notebook(name, state, seconds, archived.get(name, ""), is_earlier))
    return notebooks


def settings_of_run(config: Config) -> list[SettingLine]:
    """List all settings with their values and meanings."""
    changed = differences(config)
    lines = []
    for name, about in SETTINGS.items():
        value = portable(setting_text(getattr(config, name)))
        lines.append(SettingLine(name, value, about.meaning, name in changed))
    return lines


def versions_of(paths: RunPaths) -> dict[str, str]:
    """Read the versions of code and packages that the last command ran with; {} without any."""
    origin = _json(paths.provenance)
    if not origin.get("packages"):
        return {}
    commit = (origin.get("git_commit") or "")[:COMMIT_DIGITS]
    changed = " +" if origin.get("git_changed") else ""
    found = {
        "git": f"{commit}{changed}",
        "Python": origin["python"],
        **origin["packages"],
        "": origin["machine"],
    }
    return {name: version for name, version in found.items() if version}


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON file; {} of one that is not there, torn, or of another kind."""
    try:
        values = read_json(path)
    except (FileNotFoundError, TornFile):
        return {}
    return values if isinstance(values, dict) else {}


def _training_log(path: Path) -> pd.DataFrame:
    """Read the whole lines of a log, which may be growing; empty without any."""
    try:
        contents = path.read_bytes()
        whole = contents[: contents.rfind(b"\n") + 1]
        log = pd.read_csv(io.BytesIO(whole), usecols=LOG_COLUMNS, dtype=float)
    except (FileNotFoundError, ValueError):  # ValueError: a torn one, or an empty one
        return pd.DataFrame(columns=LOG_COLUMNS)
    return log.dropna()


def _last_step(log: pd.DataFrame, seconds_left: float | None) -> LastStep:
    last = log.iloc[-1]
    return LastStep(
        step=int(last["step"]),
        max_steps=int(last["max_steps"]),
        loss=float(last["loss"]),
        memory_gib=float(last["memory_gib"]),
        seconds_left=seconds_left,
    )


def _seconds_left(train_log: Path) -> float | None:
    pace = fold_log(train_log)
    return pace.step_s * (pace.max_steps - pace.steps) if pace else None

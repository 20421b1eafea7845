"""Keep a fold's settings, and log their changes after out-of-memory errors.

    fold1/config.json   "fold": the settings of the fold's next or last notebook
                        "run":  the settings of the run at the time
    fold1/rungs.json    the changes after out-of-memory errors, in their order: a log for reports

The two parts of config.json differ by the changes for this fold. A later change of the run's own
settings is found by comparison with "run". A fold without a config.json has the run's settings.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from vqa_utils.artifacts.files import TornFile, read_json, settings_of, settings_to_json, write_json
from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.config import NOT_OF_THE_ADAPTER, Config, with_tuples

SHAPE_OF_ADAPTER = ("lora_r", "lora_alpha")  # a checkpoint of another shape cannot be loaded

Changes = dict[str, Any]  # settings by name


@dataclass(frozen=True)
class Rung:
    """One change of a fold's settings after an out-of-memory error."""

    name: str
    before: Changes
    after: Changes
    gpu: int
    phase: str
    """"training", "scoring" or "loading"."""
    saves_gib: float
    """On that GPU in that phase, by the plan."""
    passed_over: tuple[str, ...]
    """Earlier rungs of the ladder; they would have saved nothing there."""

    def __str__(self) -> str:
        saves = f"saves {self.saves_gib:.2f} GiB by the plan"
        if self.passed_over:
            saves += f"; passed over, as they save nothing there: {', '.join(self.passed_over)}"
        return f"GPU {self.gpu}, {self.phase}: {self.name} ({saves})"


class _Saved(NamedTuple):
    """The two parts of a fold's config.json."""

    fold: Config
    run: Config


def fold_config(fold: FoldPaths, run: Config) -> Config:
    """The settings of a fold under the run's settings `run`.

    They are read from the fold's config.json, with the changes of the run's settings since then.
    After a change of the training, the fold starts anew from the run's settings.
    """
    saved = _read(fold, run)
    if saved is None or not _has_adapter_of(saved, run):
        return run
    return _under(saved, run)


def prepare_fold(fold: FoldPaths, run: Config, others: Sequence[FoldPaths] = ()) -> None:
    """Write the settings for the fold's next notebook.

    A fold without a rung of its own starts with the rungs of another: it would only meet the same
    errors.

    Args:
        fold: the fold.
        run: the run's settings.
        others: the folds of the run to learn from; none if the adapter is there already.
    """
    config = fold_config(fold, run)
    if not _follows(fold, run):
        fold.rungs.unlink(missing_ok=True)  # the log of other settings
    _write(fold, config, run)
    if read_rungs(fold):
        return
    most: list[Rung] = []
    for other in others:
        saved = _read(other, run)
        rungs = read_rungs(other)
        if saved is not None and _has_adapter_of(saved, run) and len(rungs) > len(most):
            most = rungs
            config = _under(saved, run)
    if most:
        _write(fold, config, run)
        write_json(fold.rungs, [asdict(rung) for rung in most])


def take_rung(fold: FoldPaths, run: Config, rung: Rung) -> None:
    """Change a fold's settings after an out-of-memory error, and log the change."""
    # The settings first: a stop between the two writes costs a line of the log alone
    _write(fold, replace(fold_config(fold, run), **rung.after), run)
    log = [*read_rungs(fold), rung]
    write_json(fold.rungs, [asdict(rung) for rung in log])


def read_rungs(fold: FoldPaths) -> list[Rung]:
    """Read the log of the fold's rungs; empty if no memory ran out, or if the log is torn."""
    try:
        log = read_json(fold.rungs)
    except (FileNotFoundError, TornFile):
        return []
    return [_rung(values) for values in log]


def checkpoint_settings(fold: FoldPaths, config: Config) -> Config:
    """The settings to name a training's checkpoints after.

    A training goes on from its checkpoint after a rung, so its checkpoints keep the names of the
    run's settings. Only another shape of the adapter starts anew.

    Args:
        fold: the fold.
        config: the settings of its training.
    """
    saved = _read(fold, config)
    if saved is None or saved.fold.training_hash != config.training_hash:
        return config  # not prepared by a runner: opened by hand
    shape = {name: getattr(config, name) for name in SHAPE_OF_ADAPTER}
    return replace(saved.run, **shape)


def _under(saved: _Saved, run: Config) -> Config:
    """Add the run's later changes that no adapter depends on to a fold's saved settings."""
    changes = {}  # a rung's value stays until the user gives the run another one
    for name in NOT_OF_THE_ADAPTER:
        value = getattr(run, name)
        if value != getattr(saved.run, name):
            changes[name] = value
    return replace(saved.fold, **changes)


def _follows(fold: FoldPaths, run: Config) -> bool:
    """Tell whether the fold has a config.json from the same training settings of the run."""
    saved = _read(fold, run)
    return saved is not None and _has_adapter_of(saved, run)


def _has_adapter_of(saved: _Saved, run: Config) -> bool:
    return saved.run.training_hash == run.training_hash


def _read(fold: FoldPaths, run: Config) -> _Saved | None:
    """Read a fold's settings; None without any. In place of a torn file, the log of rungs counts."""
    try:
        saved = read_json(fold.config)
    except FileNotFoundError:  # no question before: another fold's file may be set aside meanwhile
        return None
    except TornFile:
        climbed = run
        for rung in read_rungs(fold):
            climbed = replace(climbed, **rung.after)
        return _Saved(climbed, run)
    return _Saved(*(settings_of(saved[part], fold.config) for part in _Saved._fields))


def _write(fold: FoldPaths, config: Config, run: Config) -> None:
    values = {"fold": settings_to_json(config), "run": settings_to_json(run)}
    write_json(fold.config, values)


def _rung(values: dict[str, Any]) -> Rung:
    """Read a rung back from JSON: its lists become the tuples of settings."""
    changes = {part: with_tuples(values[part]) for part in ("before", "after")}
    return Rung(**with_tuples(values | changes))

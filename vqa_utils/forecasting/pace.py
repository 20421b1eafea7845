"""Expect what is left of a run by the seconds that were measured in it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from vqa_utils.artifacts.files import TornFile, read_json
from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.artifacts.timings import seconds_of
from vqa_utils.config import Config
from vqa_utils.errors import VqaError
from vqa_utils.forecasting.forecast import (
    ORDERS_IN_ONE_PASS,
    RowCounts,
    has_linear_attention,
    held_out_rows,
    scored_rows,
)
from vqa_utils.planning.shapes import shape_of

MEASURED_STEPS = 3  # until a pace is known; the first steps are slow
LATEST_STEPS = 20  # batches differ in length: the mean of so many
# Of a training row's seconds: a forward, where training has a forward, its recomputation and a
# backward of twice its operations. Taken until held-out rows have been timed
FORWARD_SHARE = 0.3
ENDING_SECONDS = 60.0  # of the notebooks after the folds, until a notebook of the run is timed


class Pace(NamedTuple):
    """Seconds that were measured in a run."""

    start: float
    """until a fold's notebook has its model"""
    step: float
    """of a training"""
    row: float
    """of a held-out row, with one order of its options"""


class FoldLog(NamedTuple):
    """How far a fold's training is."""

    steps: int
    max_steps: int
    step_s: float


def fold_log(train_log: Path, since: float = 0.0) -> FoldLog | None:
    """Read a training's log; None before the pace of the steps since then is known."""
    columns = ["step", "max_steps", "seconds_per_step", "ended"]
    try:
        log = pd.read_csv(train_log, usecols=columns, dtype=float)
    except (FileNotFoundError, ValueError):  # ValueError: a torn one, or an empty one
        return None
    log = log[log["ended"] >= since].dropna()
    if len(log) < MEASURED_STEPS:
        return None
    last = log.iloc[-1]
    pace = log["seconds_per_step"].tail(LATEST_STEPS).mean()
    return FoldLog(int(last["step"]), int(last["max_steps"]), float(pace))


def pace_of(paths: RunPaths, config: Config, since: float = 0.0) -> Pace | None:
    """Measure a run's pace by its folds' logs, and by the folds that are trained; None without any.

    Of several folds, the slowest counts. What was written since counts, as an earlier session may
    have had another machine; before there is such, all of it.
    """
    folds = [paths.fold(k) for k in config.adapter_numbers]
    logs = [fold_log(fold.train_log, since) for fold in folds]
    if not any(logs):
        since = 0.0
        logs = [fold_log(fold.train_log) for fold in folds]
    steps = [log.step_s for log in logs if log]
    if not steps:
        return None
    step = max(steps)
    starts, rows = [], []
    for k, fold in zip(config.adapter_numbers, folds, strict=True):
        trained = _meta_of(fold, since)
        if trained is None:
            continue
        whole = seconds_of(paths.notebooks, [f"03_train_fold-fold{k}"])
        starts.append(max(0.0, whole - trained["seconds"]))
        if trained.get("seconds_per_held_out_row"):
            rows.append(trained["seconds_per_held_out_row"])
    row = max(rows, default=FORWARD_SHARE * step / config.effective_batch)
    return Pace(max(starts, default=0.0), step, row)


def _meta_of(fold: FoldPaths, since: float) -> dict[str, Any] | None:
    """Read what a training has measured; None of one that is not whole, or older."""
    try:
        trained = read_json(fold.meta)
        is_old = fold.meta.stat().st_mtime < since
    except (FileNotFoundError, TornFile):
        return None
    return None if is_old or "seconds" not in trained else trained


def scoring_seconds(config: Config, rows: RowCounts, pace: Pace) -> float:
    """Expect the seconds of a fold's notebook 04."""
    return pace.start + scored_rows(config, rows) * pace.row * _passes(config)


def training_seconds(
    config: Config, rows: RowCounts, pace: Pace, steps: int, max_steps: int
) -> float:
    """Expect the seconds of a training with so many steps left, its evaluations included."""
    epochs = config.epochs * steps / max_steps
    evaluations = epochs * config.evaluations_per_epoch
    return steps * pace.step + evaluations * held_out_rows(config, rows) * pace.row


def ending_seconds(paths: RunPaths) -> float:
    """Expect the seconds of notebooks 05 and 06.

    As an earlier time, or else as 01 and 02, which read the same rows and pictures.
    """
    measured = seconds_of(paths.notebooks, ["05_ensemble", "06_analysis"])
    return measured or seconds_of(paths.notebooks, ["01_eda", "02_folds"]) or ENDING_SECONDS


def side_by_side(seconds: Sequence[float], at_once: int) -> float:
    """Expect when the last of several tasks ends, with so many at a time."""
    if not seconds:
        return 0.0
    return max(*seconds, sum(seconds) / at_once)


def in_rounds(count: int, at_once: int, seconds: float) -> float:
    """Expect when the last of equal tasks ends, with so many at a time."""
    return math.ceil(count / at_once) * seconds


def _passes(config: Config) -> float:
    """Return the seconds of a row in all orders of its options, in those of one order."""
    if config.tta == 1:
        return 1.0
    try:
        shape = shape_of(config)
    except VqaError:  # a model of another family: none is faster
        return config.tta
    return config.tta if has_linear_attention(shape) else ORDERS_IN_ONE_PASS

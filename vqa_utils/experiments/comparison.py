"""Finished runs side by side: their scores on the same out-of-fold rows, and what chance makes of the differences."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.console import Console

from vqa_utils.artifacts.files import ids_hash, read_json, write_csv
from vqa_utils.artifacts.fold_settings import read_rungs
from vqa_utils.artifacts.paths import RunPaths, comparison_file, runs_dir, shown
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.data.folds import read_folds
from vqa_utils.ensembling.members import pooled, rows_of
from vqa_utils.ensembling.other_runs import check_data, check_finished
from vqa_utils.ensembling.temperature import calibrated_oof
from vqa_utils.errors import RunError, VqaError
from vqa_utils.metrics import (
    BEYOND_CHANCE,
    accuracy_interval,
    correct,
    expected_calibration_error,
    log_loss,
    mcnemar,
)
from vqa_utils.presets import differences
from vqa_utils.running.terminal import print_table
from vqa_utils.running.timings import EXECUTED_IN, time_table
from vqa_utils.setting_types import setting_text


@dataclass(frozen=True)
class Scored:
    """A finished run."""

    paths: RunPaths
    config: Config
    probs: pd.DataFrame
    """out of fold: `id`, `a` to `d`, sorted by id"""
    answers: pd.Series
    """the right letters of these rows"""

    @property
    def rows_hash(self) -> str:
        """Names the rows and their answers: what two runs must share for their scores to be comparable."""
        return ids_hash(self.probs["id"] + "\t" + self.answers)

    @property
    def right(self) -> np.ndarray:
        """Whether each row is answered right, bool [N]."""
        return correct(self.probs, self.answers)


def compare_runs(console: Console, run_ids: Sequence[str] = ()) -> None:
    """Print finished runs, the best first, those on the same rows together; write the same to `runs/compare.csv`.

    Args:
        run_ids: the runs to compare; all below `runs/` where none is named. One that is not finished is left out, and why.

    Raises:
        RunError: a run that is named does not exist.
    """
    scored, left_out, hash_of = [], {}, functools.cache(data_hash)
    for run_id in _existing(run_ids):
        try:
            scored.append(read_scored(run_id, hash_of))
        except VqaError as error:
            left_out[run_id] = " ".join(str(error).split())
    if scored:
        table = comparison(scored)
        for _, group in table.groupby("rows_hash", sort=False):
            _print_group(console, group)
        write_csv(comparison_file(), table)
        console.print(f"table: {shown(comparison_file())}")
    for run_id, reason in left_out.items():
        console.print(f"left out: {run_id}: {reason}", style="dim", markup=False)
    if not scored and not left_out:
        console.print(f"no runs below {runs_dir()} yet")


def read_scored(run_id: str, hash_of: Callable[[Config], str] = data_hash) -> Scored:
    """A run's out-of-fold probabilities with the answers.

    Raises:
        VqaError: why it has none to compare: it is not finished, or its data are not there or have changed.
    """
    paths, config = open_run(run_id)
    check_finished(paths, config)
    check_data(paths, config, hash_of)
    train = load_challenge(config).train
    probs = pooled(paths, config, read_folds(paths.folds, train), "oof").sort_values(
        "id", ignore_index=True
    )
    return Scored(paths, config, probs, rows_of(probs, train)["answer"])


def comparison(runs: Sequence[Scored]) -> pd.DataFrame:
    """A line a run (at least one): settings, scores, costs, and `mcnemar_p` against the best run on the same rows.

    Returns:
        Runs with the same `rows_hash` together, the most accurate first, at a tie the one of less log loss; the group with the
        best run first. `low` and `high` are the ends of the accuracy's 95 % interval, memory is the largest of any fold and GPU.
    """
    table = pd.DataFrame([_line(run) for run in runs])
    table["run_index"] = range(len(runs))
    table = table.sort_values(["accuracy", "log_loss"], ascending=[False, True])
    table = pd.concat(
        [group for _, group in table.groupby("rows_hash", sort=False)], ignore_index=True
    )
    best = table.groupby("rows_hash")["run_index"].transform("first")
    pairs = zip(table["run_index"], best, strict=True)
    p = [
        np.nan if run == first else mcnemar(runs[first].right, runs[run].right)
        for run, first in pairs
    ]
    return table.assign(mcnemar_p=p).drop(columns="run_index")


def describe_comparison(group: pd.DataFrame) -> str:
    """In words, how many runs on the same rows are behind the best by more than chance."""
    best, others = group.iloc[0], group.iloc[1:]
    if others.empty:
        return f"{best['run']} is alone on its rows."
    beyond = others["run"][others["mcnemar_p"] < BEYOND_CHANCE]
    return f"Behind {best['run']} beyond chance (p < {BEYOND_CHANCE}): {', '.join(beyond) or 'none'}, of {len(others)}."


def _existing(run_ids: Sequence[str]) -> list[str]:
    missing = [run_id for run_id in run_ids if not RunPaths(run_id).config.exists()]
    if missing:
        raise RunError(
            f"--compare: expected runs below {runs_dir()}, found none called {', '.join(missing)}"
        )
    if run_ids:
        return list(dict.fromkeys(RunPaths(run_id).folder.resolve().name for run_id in run_ids))
    return sorted(
        file.parent.name
        for file in runs_dir().glob("*/config.json")
        if not file.parent.is_symlink()
    )


def _line(run: Scored) -> dict[str, object]:
    paths, config, right = run.paths, run.config, run.right
    metas = [read_json(paths.fold(k).meta) for k in config.adapter_numbers]
    endings = tuple(
        f"-fold{k}" for k in config.adapter_numbers
    )  # not those of a refit that was switched off again
    whole = sorted(marker.stem for marker in paths.stages.glob("*.json"))
    notebooks = time_table(
        paths.notebooks, [name for name in whole if "-fold" not in name or name.endswith(endings)]
    )
    low, high = accuracy_interval(right)
    calibrated = calibrated_oof(paths, run.probs["id"])
    return {
        "run": paths.run_id,
        "preset": config.preset,
        "settings": " ".join(
            f"{name}={setting_text(value)}" for name, value in differences(config).items()
        ),
        "accuracy": right.mean(),
        "low": low,
        "high": high,
        "log_loss": log_loss(run.probs, run.answers),
        "calibration_error": expected_calibration_error(run.probs, run.answers),
        "log_loss_calibrated": np.nan if calibrated is None else log_loss(calibrated, run.answers),
        "calibration_error_calibrated": np.nan
        if calibrated is None
        else expected_calibration_error(calibrated, run.answers),
        "train_minutes": sum(meta["seconds"] for meta in metas) / 60,
        "notebook_minutes": notebooks["total"].iloc[-1] / 60,
        "minutes_from": " ".join(sorted(set(notebooks.get(EXECUTED_IN, ())) - {"", paths.run_id})),
        "peak_gib": max(max(meta["peak_memory_gib"]) for meta in metas),
        "rungs": max(len(read_rungs(paths.fold(k))) for k in config.adapter_numbers),
        "data": config.data,
        "rows": len(right),
        "rows_hash": run.rows_hash,
    }


def _with_calibrated(group: pd.DataFrame, score: str) -> list[str]:
    pairs = zip(group[score], group[f"{score}_calibrated"], strict=True)
    return [
        f"{before:.3f}" if np.isnan(after) else f"{before:.3f} ({after:.3f})"
        for before, after in pairs
    ]


def _print_group(console: Console, group: pd.DataFrame) -> None:
    ends = zip(group["accuracy"], group["low"], group["high"], strict=True)
    short = pd.DataFrame({
        "run": group["run"],
        "preset": group["preset"],
        "settings": group["settings"],
        "accuracy (95 %)": [f"{accuracy:.3f} ({low:.3f}-{high:.3f})" for accuracy, low, high in ends],
        "log loss (calibrated)": _with_calibrated(group, "log_loss"),
        "ECE (calibrated)": _with_calibrated(group, "calibration_error"),
        "minutes": group["notebook_minutes"].round(1),
        "training": group["train_minutes"].round(1),
        "GiB": group["peak_gib"],
        "rungs": group["rungs"],
        "p": group["mcnemar_p"],
    })  # fmt: skip
    rows, data = group["rows"].iloc[0], ", ".join(sorted(set(group["data"])))
    print_table(
        console, f"{rows} out-of-fold rows of {data}; p is McNemar's against the first run", short
    )
    console.print(describe_comparison(group), markup=False)
    for line in group[group["minutes_from"] != ""].itertuples():
        console.print(
            f"{line.run} took over notebooks of {line.minutes_from}; the minutes are what they took there.",
            markup=False,
        )

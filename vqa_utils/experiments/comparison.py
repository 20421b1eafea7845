"""Compare finished runs by their scores on the same out-of-fold rows."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.console import Console

from vqa_utils.artifacts.files import ids_hash, read_json, write_sheet
from vqa_utils.artifacts.fold_settings import read_rungs
from vqa_utils.artifacts.paths import RunPaths, comparison_file, runs_dir, shown
from vqa_utils.artifacts.places import located, portable
from vqa_utils.artifacts.run import all_runs, named_run, open_run
from vqa_utils.artifacts.timings import EXECUTED_IN, time_table
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
from vqa_utils.running.terminal.tables import print_table
from vqa_utils.setting_types import setting_text

COST = "{:.1f}"  # minutes, GiB
# Columns to leave out of a narrow terminal, in this order; `runs/compare.csv` has all
LEAST_IMPORTANT = ("preset", "rungs", "training", "GiB", "minutes", "settings", "ECE")


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
        """Name the rows and their answers: scores are comparable if these are the same."""
        # Both have the index 0 to N - 1: pandas joins them by index, not by position
        return ids_hash(self.probs["id"] + "\t" + self.answers)

    @property
    def right(self) -> np.ndarray:
        """Tell whether each row is answered right, bool [N]."""
        return correct(self.probs, self.answers)


def compare_runs(console: Console, run_ids: Sequence[str] = ()) -> None:
    """Print the scores of finished runs, and write them to `runs/compare.csv`.

    Runs on the same rows stand together, the best first. An unfinished run is left out, and the
    reason printed.

    Args:
        console: the terminal.
        run_ids: folders below `runs/`; empty for all.

    Raises:
        RunError: a named run does not exist.
    """
    scored = []
    left_out = {}
    hash_of = functools.cache(data_hash)  # many runs have the same data
    for run_id in _existing(run_ids):
        try:
            scored.append(read_scored(run_id, hash_of))
        except VqaError as error:
            left_out[run_id] = " ".join(str(error).split())  # on one line
    if scored:
        table = comparison(scored)
        for _, group in table.groupby("rows_hash", sort=False):
            _print_group(console, group)
        write_sheet(comparison_file(), table)
        console.print(f"table: {shown(comparison_file())}")
    for run_id, reason in left_out.items():
        console.print(f"left out: {run_id}: {reason}", style="dim", markup=False)
    if not scored and not left_out:
        console.print(f"no runs below {runs_dir()} yet")


def read_scored(run_id: str, hash_of: Callable[[Config], str] = data_hash) -> Scored:
    """Read the out-of-fold probabilities of a run, and the answers.

    Args:
        run_id: the run.
        hash_of: `data_hash`, cached if many runs are read.

    Raises:
        VqaError: the run is not finished, or its data are missing or have changed.
    """
    paths, config = open_run(run_id)
    check_finished(paths, config)
    check_data(paths, config, hash_of)
    train = load_challenge(config).train
    folds = read_folds(paths.folds, train)
    # Folds differ between runs: only the order by id is the same in all
    probs = pooled(paths, config, folds, "oof").sort_values("id", ignore_index=True)
    return Scored(paths, config, probs, rows_of(probs, train)["answer"])


def comparison(runs: Sequence[Scored]) -> pd.DataFrame:
    """Tabulate settings, scores and costs of at least one run.

    Returns:
        One line per run. Runs with equal `rows_hash` stand together: the most accurate first, at a
        tie the one of less log loss. The group with the best run comes first. `low` and `high` are
        the ends of Wilson's 95 % interval of the accuracy, `peak_gib` is the largest of any fold
        and GPU, `mcnemar_p` tests a run against the best of its group.
    """
    table = pd.DataFrame([_line(run) for run in runs])
    table["run_index"] = range(len(runs))  # back to `runs` after the sort
    table = table.sort_values(["accuracy", "log_loss"], ascending=[False, True])
    # Groups in the order of their best runs, as the table is sorted already
    groups = [group for _, group in table.groupby("rows_hash", sort=False)]
    table = pd.concat(groups, ignore_index=True)
    best_of_group = table.groupby("rows_hash")["run_index"].transform("first")
    p_values = []
    for index, best in zip(table["run_index"], best_of_group, strict=True):
        p = mcnemar(runs[best].right, runs[index].right) if index != best else np.nan
        p_values.append(p)
    return table.assign(mcnemar_p=p_values).drop(columns="run_index")


def describe_comparison(group: pd.DataFrame) -> str:
    """Name the runs behind the best of their group (same rows) by more than chance."""
    best = group.iloc[0]
    others = group.iloc[1:]
    if others.empty:
        return f"{best['run']} is alone on its rows."
    behind = others["run"][others["mcnemar_p"] < BEYOND_CHANCE]
    return (
        f"Behind {best['run']} beyond chance (p < {BEYOND_CHANCE}): "
        f"{', '.join(behind) or 'none'}, of {len(others)}."
    )


def _existing(run_ids: Sequence[str]) -> list[str]:
    """Resolve the named runs, each once, or list all."""
    if not run_ids:
        return all_runs()
    names = []
    missing = []
    for run_id in run_ids:
        try:
            paths = named_run(run_id)
        except RunError:
            missing.append(repr(run_id))
            continue
        names.append(paths.run_id)
        if not paths.config.exists():
            missing.append(repr(run_id))
    if missing:
        raise RunError(f"expected runs below {runs_dir()}, found none called {', '.join(missing)}")
    return list(dict.fromkeys(names))


def _line(run: Scored) -> dict[str, object]:
    """Make the line of a run: its settings, scores, costs and rows."""
    settings = []
    for name, value in differences(run.config).items():
        settings.append(f"{name}={portable(setting_text(value))}")
    return {
        "run": run.paths.run_id,
        "preset": run.config.preset,
        "settings": " ".join(settings),
        **_scores(run),
        **_costs(run),
        "data": portable(run.config.data),
        "rows": len(run.probs),
        "rows_hash": run.rows_hash,
    }


def _scores(run: Scored) -> dict[str, float]:
    right = run.right
    low, high = accuracy_interval(right)
    scores = {
        "accuracy": right.mean(),
        "low": low,
        "high": high,
        "log_loss": log_loss(run.probs, run.answers),
        "calibration_error": expected_calibration_error(run.probs, run.answers),
        "log_loss_calibrated": np.nan,
        "calibration_error_calibrated": np.nan,
    }
    calibrated = calibrated_oof(run.paths, run.probs["id"])
    if calibrated is not None:
        scores["log_loss_calibrated"] = log_loss(calibrated, run.answers)
        scores["calibration_error_calibrated"] = expected_calibration_error(calibrated, run.answers)
    return scores


def _costs(run: Scored) -> dict[str, object]:
    seconds = 0.0
    peaks_gib: list[float] = []  # of each fold and GPU
    rungs = []  # number of out-of-memory errors of each fold
    for number in run.config.adapter_numbers:
        fold = run.paths.fold(number)
        meta = read_json(fold.meta)
        seconds += meta["seconds"]
        peaks_gib += meta["peak_memory_gib"]
        rungs.append(len(read_rungs(fold)))
    notebooks = time_table(run.paths.notebooks, _notebook_names(run))
    # A sweep's point may have taken over notebooks of others
    executed_in = set(notebooks.get(EXECUTED_IN, ())) - {"", run.paths.run_id}
    return {
        "train_minutes": seconds / 60,
        "notebook_minutes": notebooks["total"].iloc[-1] / 60,  # the line `all`
        "minutes_from": " ".join(sorted(executed_in)),
        "peak_gib": max(peaks_gib),
        "rungs": max(rungs),
    }


def _notebook_names(run: Scored) -> list[str]:
    """List the complete notebooks of a run, without a refit switched off again."""
    endings = tuple(f"-fold{number}" for number in run.config.adapter_numbers)
    names = []
    for marker in sorted(run.paths.stages.glob("*.json")):
        if "-fold" not in marker.stem or marker.stem.endswith(endings):
            names.append(marker.stem)
    return names


def _print_group(console: Console, group: pd.DataFrame) -> None:
    """Print the runs on the same rows."""
    columns = pd.DataFrame({
        "run": group["run"],
        "preset": group["preset"],
        "settings": group["settings"],
        "accuracy": _accuracy_texts(group),
        "log loss": _score_texts(group, "log_loss"),
        "ECE": _score_texts(group, "calibration_error"),
        "minutes": group["notebook_minutes"].map(COST.format),
        "training": group["train_minutes"].map(COST.format),
        "GiB": group["peak_gib"].map(COST.format),
        "rungs": group["rungs"],
        "p": group["mcnemar_p"],
    })  # fmt: skip
    rows = group["rows"].iloc[0]
    data = ", ".join(sorted(set(map(located, group["data"]))))
    title = (
        f"{rows} out-of-fold rows of {data}; "
        "brackets: 95 % interval, after calibration; p is McNemar's against the first run"
    )
    print_table(console, title, columns, drop=LEAST_IMPORTANT)
    console.print(describe_comparison(group), markup=False)
    for line in group[group["minutes_from"] != ""].itertuples():
        console.print(
            f"{line.run} took over notebooks of {line.minutes_from}; "
            "the minutes are what they took there.",
            markup=False,
        )


def _accuracy_texts(group: pd.DataFrame) -> list[str]:
    """Format the accuracy of each run, such as `0.970 (0.957-0.979)`."""
    return [f"{line.accuracy:.3f} ({line.low:.3f}-{line.high:.3f})" for line in group.itertuples()]


def _score_texts(group: pd.DataFrame, score: str) -> list[str]:
    """Format a score of each run, with brackets for the one after calibration."""
    texts = []
    for scored, calibrated in zip(group[score], group[f"{score}_calibrated"], strict=True):
        text = f"{scored:.3f}"
        if not np.isnan(calibrated):
            text += f" ({calibrated:.3f})"
        texts.append(text)
    return texts

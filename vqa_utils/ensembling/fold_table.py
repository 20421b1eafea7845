"""Tabulate a run's adapters: scores, minutes, memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.fold_settings import read_rungs
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config
from vqa_utils.ensembling.members import pooled, rows_of, scored_adapters
from vqa_utils.metrics import accuracy, accuracy_interval, correct, log_loss

RUNGS = "after out of memory"


def fold_table(
    paths: RunPaths, config: Config, folds: pd.DataFrame, train: pd.DataFrame
) -> pd.DataFrame:
    """One line per scored adapter and one for all.

    A refit holds out no row, and so has costs alone.

    Returns:
        `fold` (its number, or the name of a refit), `rows`, `accuracy` with Wilson's 95 % interval
        from `low` to `high`, `log_loss`, `minutes`, `peak_gib`; if memory ran out, also the
        changes that followed.
    """
    oof = pooled(paths, config, folds, "oof")
    lines = []
    all_metas = []
    for number in scored_adapters(paths, config):
        fold = paths.fold(number)
        metas = [read_json(fold.meta)] if fold.meta.exists() else []
        rungs = read_rungs(fold)
        lines.append({
            "fold": number if number in config.fold_numbers else config.adapter_name(number),
            **_scores(oof[oof["fold"] == number], train),
            **_costs(metas),
            RUNGS: "; ".join(rung.name for rung in rungs),
        })  # fmt: skip
        all_metas += metas
    lines.append({"fold": "all", **_scores(oof, train), **_costs(all_metas), RUNGS: ""})
    table = pd.DataFrame(lines)
    if not table[RUNGS].any():
        return table.drop(columns=RUNGS)
    return table


def _scores(probs: pd.DataFrame, train: pd.DataFrame) -> dict[str, float]:
    """The scores of some out-of-fold rows; NaN of no rows."""
    if probs.empty:
        return {"rows": 0, "accuracy": np.nan, "low": np.nan, "high": np.nan, "log_loss": np.nan}
    probs = probs.reset_index(drop=True)
    answers = rows_of(probs, train)["answer"]
    low, high = accuracy_interval(correct(probs, answers))
    return {
        "rows": len(probs),
        "accuracy": accuracy(probs, answers),
        "low": low,
        "high": high,
        "log_loss": log_loss(probs, answers),
    }


def _costs(metas: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Minutes of training in all and the highest peak of a GPU, from the folds' meta.json."""
    if not metas:
        return {"minutes": np.nan, "peak_gib": np.nan}
    seconds = sum(meta["seconds"] for meta in metas)
    peaks = [max(meta["peak_memory_gib"]) for meta in metas]  # GiB, each adapter's fullest GPU
    return {"minutes": seconds / 60, "peak_gib": max(peaks)}

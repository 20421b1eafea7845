"""A run's adapters side by side: scores on the rows that each held out, minutes and memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.fold_settings import read_rungs
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config
from vqa_utils.ensembling.members import pooled, rows_of, scored_adapters
from vqa_utils.metrics import accuracy, accuracy_interval, correct, log_loss


def fold_table(
    paths: RunPaths, config: Config, folds: pd.DataFrame, train: pd.DataFrame
) -> pd.DataFrame:
    """A line a scored adapter and one for all; a refit holds out no row, so that it has costs alone.

    Returns:
        `fold` (its number, or the name of a refit), `rows`, `accuracy` with its 95 % interval from `low` to `high`, `log_loss`,
        `minutes`, `peak_gib`; where memory ran out, also what was changed then.
    """
    oof, scored = pooled(paths, config, folds, "oof"), scored_adapters(paths, config)
    metas = {k: read_json(paths.fold(k).meta) for k in scored if paths.fold(k).meta.exists()}
    lines = []
    for k in scored:
        name = k if k in config.fold_numbers else config.adapter_name(k)
        rungs = "; ".join(rung.name for rung in read_rungs(paths.fold(k)))
        costs = _costs([metas[k]] if k in metas else [])
        lines.append(
            {
                "fold": name,
                **_scores(oof[oof["fold"] == k], train),
                **costs,
                "after out of memory": rungs,
            }
        )
    lines.append(
        {
            "fold": "all",
            **_scores(oof, train),
            **_costs(list(metas.values())),
            "after out of memory": "",
        }
    )
    table = pd.DataFrame(lines)
    return (
        table if table["after out of memory"].any() else table.drop(columns="after out of memory")
    )


def _scores(probs: pd.DataFrame, train: pd.DataFrame) -> dict[str, float]:
    if probs.empty:
        return {"rows": 0} | dict.fromkeys(("accuracy", "low", "high", "log_loss"), np.nan)
    probs, answers = probs.reset_index(drop=True), rows_of(probs, train)["answer"]
    low, high = accuracy_interval(correct(probs, answers))
    scores = {
        "accuracy": accuracy(probs, answers),
        "low": low,
        "high": high,
        "log_loss": log_loss(probs, answers),
    }
    return {"rows": len(probs), **scores}


def _costs(metas: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {
        "minutes": sum(meta["seconds"] for meta in metas) / 60 if metas else np.nan,
        "peak_gib": max((max(meta["peak_memory_gib"]) for meta in metas), default=np.nan),
    }

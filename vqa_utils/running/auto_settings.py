"""Replace "auto" by numbers for a run's data and machine."""

import csv
import dataclasses
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vqa_utils.config import DEMO_MODEL_NAME, Config
from vqa_utils.data.challenge import DataError, read_questions
from vqa_utils.data.known.challenges import data_dir
from vqa_utils.data.text_lengths import measure_texts
from vqa_utils.errors import RunError
from vqa_utils.forecasting.folds_at_once import with_folds_at_once
from vqa_utils.forecasting.forecast import ASSUMED_ROWS, RowCounts
from vqa_utils.model.cache_folders import has_room
from vqa_utils.planning.images import feature_bytes
from vqa_utils.planning.machine.gpus import Gpu
from vqa_utils.planning.machine.host import free_memory
from vqa_utils.planning.memory import weights_by_module
from vqa_utils.planning.plan import is_planned, resolve_for_machine, shares_base
from vqa_utils.planning.shapes import shape_of
from vqa_utils.planning.source.check import source_of, tokenizer_of
from vqa_utils.running.resolution import with_data
from vqa_utils.setting_types import AUTO
from vqa_utils.sharing.lender import sharing_problem


def rows_here(config: Config) -> RowCounts | None:
    """Count the rows of a run, without a check; None without the files."""
    try:
        data = with_data(config).data
    except RunError:
        return None
    folder = data_dir(data)
    files = [folder / "train.csv", folder / "test.csv"]
    if config.extra_train:
        files.append(Path(config.extra_train))
    if not all(file.is_file() for file in files):
        return None
    counts = [_count_rows(file) for file in files]
    if config.limit:
        counts = [min(count, config.limit) for count in counts]
    return RowCounts(*counts)


def _count_rows(file: Path) -> int:
    """Rows of a CSV, without its head and without empty lines."""
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        # Rows, not lines: a quoted question may have line breaks
        return sum(1 for row in csv.reader(lines) if row) - 1


def with_text_lengths(config: Config, console: Console, given: Container[str] = ()) -> Config:
    """Set the texts' tokens to those of the data, as it is now; outliers are printed.

    Without the data or the tokenizer, the settings stay.

    Args:
        config: the run's settings.
        console: the terminal.
        given: settings that this command gives, which stay too.
    """
    try:
        rows = read_questions(with_data(config))
    except (RunError, DataError):  # it is not there, or the check of the data says what is wrong
        return config
    lengths = measure_texts(rows, tokenizer_of(source_of(config)), config.prompt)
    if lengths is None:
        return config
    if lengths.outliers:
        console.print(lengths.describe_outliers(), style="yellow", markup=False)
    measured = {
        "text_tokens": lengths.usual,
        "longest_text": lengths.longest_trained,
        "longest_test": lengths.longest_test,
    }
    changes: dict[str, Any] = {}
    for name, count in measured.items():
        if count and name not in given:
            changes[name] = count
    return dataclasses.replace(config, **changes)


def with_feature_cache(config: Config, gpus: Sequence[Gpu]) -> Config:
    """Replace "auto" of `cache_features`: on a GPU, if a disk has room for all pictures' features.

    And for the packed base, which is kept there too.
    """
    if config.cache_features != AUTO:
        return config
    is_worth_it = bool(gpus) and config.model != DEMO_MODEL_NAME and is_planned(config)
    # A closer look at few pictures would have all of them go through the tower once more
    if not is_worth_it or config.looks_closer:
        return dataclasses.replace(config, cache_features=False)
    shape = shape_of(config)
    rows = rows_here(config) or ASSUMED_ROWS
    features = sum(rows) * feature_bytes(shape, config)  # a picture a row, at most
    groups = weights_by_module(shape, config).values()
    packed = sum(sum(group.values()) for group in groups)  # its copy may come to the same disk
    found = has_room(config, features + packed, f"*-features-{config.image_side}px-*")
    return dataclasses.replace(config, cache_features=found)


def for_machine(
    config: Config, gpus: Sequence[Gpu], console: Console, given: Container[str] = ()
) -> Config:
    """Replace each "auto" of texts, features, folds at a time and batches for data and GPUs.

    One fold at a time where folds cannot share a base here; the reason is printed.
    """
    config = with_feature_cache(with_text_lengths(config, console, given), gpus)
    if not gpus or not is_planned(config):
        return resolve_for_machine(config, gpus)
    chosen = with_folds_at_once(config, gpus, rows_here(config), free_memory())
    if chosen.sharing_folds > 1 and config.folds_at_once == AUTO:
        problem = sharing_problem(len(gpus))
        if problem:
            console.print(f"one fold at a time: {problem}", style="yellow", markup=False)
            chosen = dataclasses.replace(config, folds_at_once=1)
    folds = len(config.adapter_numbers)
    if chosen.sharing_folds > 1 and not shares_base(chosen, folds, gpus):
        console.print(
            f"one fold at a time: folds_at_once={config.folds_at_once} needs several folds, and a "
            "4-bit base without offloaded experts that no GPU could hold alone",
            style="yellow",
            markup=False,
        )
        chosen = dataclasses.replace(config, folds_at_once=1)
    return resolve_for_machine(chosen, gpus)

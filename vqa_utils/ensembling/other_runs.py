"""Read finished runs as members of one ensemble, checked against each other."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vqa_utils.artifacts.files import ArtifactError, hashes, read_json, read_table
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.artifacts.run import named_run, open_run, read_config
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.ensembling.members import rows_of, scored_adapters
from vqa_utils.errors import RunError, VqaError, listed

ENSEMBLE = "05_ensemble"  # a run is finished after this notebook
SPLITS = ("oof", "test")

Frames = dict[str, pd.DataFrame]
"""`id`, `a` to `d` by run"""


@dataclass(frozen=True)
class Runs:
    """Runs over the same rows, in the same order in all of them."""

    config: Config
    """of the first run, with the folder of the data"""
    groups: pd.DataFrame
    """`id`, `group` of the out-of-fold rows"""
    oof: Frames
    test: Frames


def read_runs(run_ids: Sequence[str]) -> Runs:
    """Read the probabilities that 05_ensemble wrote in each run.

    The runs must share the data and its rows; their extra rows and paraphrases may differ.

    Raises:
        RunError: with every run that is missing, unfinished or named twice, or has changed data,
            or other CSV files or rows than the first.
    """
    names = []
    problems = []
    for run_id in run_ids:
        try:
            names.append(named_run(run_id).run_id)
        except RunError as error:
            problems.append(str(error))
    problems += _naming_problems(names)
    configs: dict[str, Config] = {}
    hash_of = functools.cache(data_hash)  # runs often share their data
    for name in dict.fromkeys(names):
        try:
            configs[name] = _finished_config(RunPaths(name), hash_of)
        except VqaError as error:
            problems.append(str(error))
    problems += _differing_csvs(configs)

    files: dict[str, Frames] = {}
    for split in SPLITS:
        files[split], unreadable = _read_split(configs, split)
        problems += unreadable
        problems += _differing_rows(split, files[split])
    if problems:
        raise RunError(listed("runs that cannot be blended:", problems))

    first = names[0]
    oof = _aligned(files["oof"], first)
    test = _aligned(files["test"], first)
    return Runs(configs[first], _groups_of(oof[first], RunPaths(first)), oof, test)


def check_data(paths: RunPaths, config: Config, hash_of: Callable[[Config], str]) -> None:
    """Check that the data of a finished run has not changed.

    Args:
        hash_of: `fingerprint.data_hash`, cached if many runs share their data.

    Raises:
        RunError: it has changed.
    """
    # Only the settings that name the data, so that the cache knows the same data in other runs
    data_alone = Config(
        data=config.data,
        limit=config.limit,
        extra_train=config.extra_train,
        drop=config.drop,
        paraphrase=config.paraphrase,
    )
    seen = read_json(_marker(paths))["data"]
    if hash_of(data_alone) != seen:
        raise RunError(
            f"expected the data of its run in {config.data}, found changed data; "
            "restore the files of that time"
        )


def check_finished(paths: RunPaths, config: Config) -> None:
    """Check that a run's answers are there, from all its adapters and its current settings.

    Raises:
        RunError: something is missing, or has changed.
    """
    if not _marker(paths).exists():
        complete = len(list(paths.stages.glob("*.json")))
        raise RunError(f"not finished: {complete} notebooks are complete, {ENSEMBLE} is missing")
    record = read_json(_marker(paths))
    recorded = record["inputs"] | record["outputs"]
    present = hashes([paths.folder / name for name in recorded], paths.folder)
    if record["config"] != config.hash_for(ENSEMBLE) or present != recorded:
        raise RunError(f"not finished: its settings or files have changed since {ENSEMBLE}")
    missing = sorted(set(config.adapter_numbers) - set(scored_adapters(paths, config)))
    if missing:
        names = ", ".join(config.adapter_name(number) for number in missing)
        raise RunError(f"not finished: without scores: {names}")


def has_other_settings(paths: RunPaths) -> bool:
    """Tell whether a run's 05_ensemble, if it has run, had other settings than the run has now."""
    if not _marker(paths).exists():
        return False
    return read_json(_marker(paths))["config"] != read_config(paths).hash_for(ENSEMBLE)


def _marker(paths: RunPaths) -> Path:
    """Return 05_ensemble's marker, which is written last."""
    return paths.stages / f"{ENSEMBLE}.json"


def _naming_problems(names: Sequence[str]) -> list[str]:
    """Describe runs named twice, or too few."""
    problems = []
    different = sorted(set(names))
    for name in different:
        if names.count(name) > 1:
            problems.append(f"{name}: expected each run once, found it again")
    if len(different) < 2:
        problems.append(f"expected at least two runs, found {len(different)}")
    return problems


def _finished_config(paths: RunPaths, hash_of: Callable[[Config], str]) -> Config:
    """Open a finished run, with unchanged data.

    Raises:
        RunError: it is missing, unfinished, or its data has changed since.
    """
    if not paths.config.exists():
        raise RunError(f"{shown(paths.folder)}: expected a finished run, found none")
    try:
        config = open_run(paths.run_id)[1]
        check_finished(paths, config)
        check_data(paths, config, hash_of)
    except VqaError as error:
        command = f"python run_all.py status --run-id {paths.run_id}"
        raise RunError(f"{shown(paths.folder)}: {error}; see {command}") from error
    return config


def _read_split(run_ids: Iterable[str], split: str) -> tuple[Frames, list[str]]:
    """Read a split's probabilities by run; describe unusable files."""
    frames, problems = {}, []
    for run_id in run_ids:
        file = RunPaths(run_id).ensemble / f"probs_{split}.csv"
        try:
            frames[run_id] = read_probabilities(file)
        except ArtifactError as error:
            problems.append(str(error))
    return frames, problems


def _differing_csvs(configs: Mapping[str, Config]) -> list[str]:
    """Describe CSVs that differ from the first run's."""
    by_run = {}
    for name, config in configs.items():
        challenge = load_challenge(config)
        by_run[name] = hashes(challenge.files[:3], challenge.folder)  # train, test, sample
    problems = []
    first = next(iter(by_run), "")
    for name, csvs in by_run.items():
        other = [file for file in csvs if csvs[file] != by_run[first].get(file)]
        if other:
            problems.append(
                f"{name}: expected {', '.join(other)} as of {first}, found other contents"
            )
    return problems


def _differing_rows(split: str, frames: Frames) -> list[str]:
    """Describe runs with other ids than the first."""
    problems = []
    ids = {name: set(frame["id"]) for name, frame in frames.items()}
    first = next(iter(ids), "")
    for name in ids:
        lacks = sorted(ids[first] - ids[name])
        has = sorted(ids[name] - ids[first])
        if lacks or has:
            problems.append(
                f"{name}: expected the {len(ids[first])} {split} rows of {first}, "
                f"found {len(ids[name])}: lacks {len(lacks)} (such as {lacks[:3]}), "
                f"has {len(has)} others (such as {has[:3]})"
            )
    return problems


def _groups_of(oof: pd.DataFrame, paths: RunPaths) -> pd.DataFrame:
    """Read `id` and `group` of these rows from folds.csv."""
    dtypes = {"id": str, "group": str}
    # Ids such as "01" and "None" stay text
    columns = ["id", "group"]
    folds = read_table(paths.folds, columns, dtype=dtypes, keep_default_na=False)
    return rows_of(oof, folds)[columns]


def _aligned(frames: Frames, first: str) -> Frames:
    """Put all runs' rows in the first run's order."""
    ids = frames[first]["id"]
    return {name: frame.set_index("id").loc[ids].reset_index() for name, frame in frames.items()}

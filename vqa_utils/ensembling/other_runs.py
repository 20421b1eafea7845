"""Finished runs as the members of one ensemble: found, and checked against each other."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from vqa_utils.artifacts.files import ArtifactError, hashes, read_json
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.artifacts.run import open_run
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.ensembling.members import scored_adapters
from vqa_utils.errors import RunError, VqaError


@dataclass(frozen=True)
class Runs:
    """Runs over the same rows, which stand in the same order in all of them."""

    config: Config
    """of the first: where the data is"""
    groups: pd.DataFrame
    """`id`, `group` of the out-of-fold rows"""
    oof: dict[str, pd.DataFrame]
    """`id`, `a` to `d` by run"""
    test: dict[str, pd.DataFrame]


def read_runs(run_ids: Sequence[str]) -> Runs:
    """The probabilities that 05_ensemble wrote in each run.

    Raises:
        RunError: with every run that is missing, unfinished or named twice, whose data has changed since, or which has other
            CSV files or rows than the first. What each was trained on besides, its extra rows or paraphrases, may differ.
    """
    names = [RunPaths(name).folder.resolve().name for name in run_ids]  # what `latest` stands for
    problems = [
        f"{name}: expected each run once, found it again"
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    if len(set(names)) < 2:
        problems.append(f"expected at least two runs, found {len(set(names))}")
    files: dict[str, dict[str, pd.DataFrame]] = {"oof": {}, "test": {}}
    configs: dict[str, Config] = {}
    tables, hash_of = {}, functools.cache(data_hash)
    for paths in map(RunPaths, dict.fromkeys(names)):
        if not paths.config.exists():
            problems.append(
                f"{shown(paths.folder)}: expected a run that has its answers, found none"
            )
            continue
        try:
            config = open_run(paths.run_id)[1]
            check_finished(paths, config)
            check_data(paths, config, hash_of)
        except VqaError as error:
            problems.append(
                f"{shown(paths.folder)}: {error}; see run_all.py status --run-id {paths.run_id}"
            )
            continue
        configs[paths.run_id] = config
        challenge = load_challenge(config)
        tables[paths.run_id] = hashes(challenge.files[:3], challenge.folder)
        for rows, frames in files.items():
            try:
                frames[paths.run_id] = read_probabilities(paths.ensemble / f"probs_{rows}.csv")
            except ArtifactError as error:
                problems.append(str(error))
    for rows, frames in files.items():
        problems += _differences(rows, frames)
    first, *others = tables or [""]
    for name in others:
        other = [file for file, known in tables[name].items() if known != tables[first][file]]
        problems += [
            f"{name}: expected {', '.join(other)} as of {first}, found other contents"
        ] * bool(other)
    if problems:
        raise RunError(
            "\n".join(["runs that cannot be blended:", *(f"  - {problem}" for problem in problems)])
        )
    return _aligned(configs[first], RunPaths(first), files)


def _differences(rows: str, frames: dict[str, pd.DataFrame]) -> list[str]:
    """How the ids of each run differ from the first one's."""
    problems, ids = [], {name: set(frame["id"]) for name, frame in frames.items()}
    first = next(iter(ids), "")
    for name in ids:
        lacks, has = sorted(ids[first] - ids[name]), sorted(ids[name] - ids[first])
        if lacks or has:
            problems.append(
                f"{name}: expected the {len(ids[first])} {rows} rows of {first}, found {len(ids[name])}: lacks {len(lacks)} "
                f"(such as {lacks[:3]}), has {len(has)} others (such as {has[:3]})"
            )
    return problems


def _aligned(config: Config, paths: RunPaths, files: dict[str, dict[str, pd.DataFrame]]) -> Runs:
    """All runs in the order of the rows of one of them, whose settings and paths are given."""
    aligned = {
        rows: {
            name: frame.set_index("id").loc[frames[paths.run_id]["id"]].reset_index()
            for name, frame in frames.items()
        }
        for rows, frames in files.items()
    }
    groups = pd.read_csv(paths.folds, dtype={"id": str, "group": str}, keep_default_na=False)
    return Runs(
        config,
        groups.set_index("id").loc[files["oof"][paths.run_id]["id"], ["group"]].reset_index(),
        **aligned,
    )


ENSEMBLE = "05_ensemble"  # the notebook after which a run has all of its answers


def check_data(paths: RunPaths, config: Config, hash_of: Callable[[Config], str]) -> None:
    """Check that the data is still what a finished run has seen.

    Args:
        hash_of: `runs.data_hash`, cached where many runs are about the same data.

    Raises:
        RunError: it has changed.
    """
    data = Config(
        data=config.data,
        limit=config.limit,
        extra_train=config.extra_train,
        paraphrase=config.paraphrase,
    )
    if hash_of(data) != read_json(paths.stages / f"{ENSEMBLE}.json")["data"]:
        raise RunError(
            f"expected the data that it has seen in {config.data}, found other; bring back the files of then"
        )


def check_finished(paths: RunPaths, config: Config) -> None:
    """Check that a run's answers are there, of all its adapters and of its settings now.

    Raises:
        RunError: what is missing, or has changed.
    """
    marker = paths.stages / f"{ENSEMBLE}.json"
    if not marker.exists():
        raise RunError(
            f"not finished: {len(list(paths.stages.glob('*.json')))} notebooks are whole, {ENSEMBLE} is missing"
        )
    record = read_json(marker)
    files = record["inputs"] | record["outputs"]
    if (
        record["config"] != config.hash_for(ENSEMBLE)
        or hashes([paths.folder / name for name in files], paths.folder) != files
    ):
        raise RunError(f"not finished: its settings or files have changed since {ENSEMBLE}")
    missing = sorted(set(config.adapter_numbers) - set(scored_adapters(paths, config)))
    if missing:
        raise RunError(
            f"not finished: without scores: {', '.join(map(config.adapter_name, missing))}"
        )

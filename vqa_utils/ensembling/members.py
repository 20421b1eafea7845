"""Read a run's scored adapters and pool the out-of-fold rows."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from vqa_utils.artifacts.files import ArtifactError, TornFile, read_json, settings_of
from vqa_utils.artifacts.fold_settings import fold_config
from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.config import Config
from vqa_utils.language import said


@dataclass(frozen=True)
class Member:
    """One adapter's test probabilities."""

    number: int
    """of its fold, or the refit's"""
    name: str
    test: pd.DataFrame
    """`id`, `a` to `d`: all rows of test.csv, in its order"""


def scored_adapters(paths: RunPaths, config: Config) -> list[int]:
    """The adapters with test probabilities, the refit among them.

    An adapter trained with other settings than the run's present ones is no member.
    """
    scored = []
    for number in config.adapter_numbers:
        fold = paths.fold(number)
        if fold.probs("test").exists() and has_settings(fold, config):
            scored.append(number)
    return scored


def scored_folds(paths: RunPaths, config: Config) -> tuple[list[int], list[int]]:
    """The folds with test probabilities (see `scored_adapters`), and the missing ones.

    Raises:
        ArtifactError: no fold has any.
    """
    adapters = scored_adapters(paths, config)
    scored = [k for k in config.fold_numbers if k in adapters]
    missing = [k for k in config.fold_numbers if k not in adapters]
    if not scored:
        raise ArtifactError(
            f"{paths.folder}: expected fold*/probs_test.csv, found none; "
            "run notebooks 03_train_fold and 04_infer first"
        )
    return scored, missing


def read_members(paths: RunPaths, config: Config, test_ids: Iterable[str]) -> list[Member]:
    """Read the test probabilities of each scored adapter, checked against the ids of test.csv."""
    test_ids = list(test_ids)
    members = []
    for number in scored_adapters(paths, config):
        probs = read_probabilities(paths.fold(number).probs("test"), test_ids)
        members.append(Member(number, config.adapter_name(number), probs))
    return members


def describe_refit(paths: RunPaths, config: Config) -> str:
    """Say if a model of all rows is a member, and if any score judges it."""
    if not config.refit:
        return said("No model is refitted on all rows.")
    number = config.adapter_numbers[-1]
    name = config.adapter_name(number)
    if number not in scored_adapters(paths, config):
        return said("{name}: not scored yet, and no member.", name=name)
    return said(
        "{name}: trained on all rows, a member for the test rows alone; "
        "out-of-fold scores judge the folds' models, not it.",
        name=name,
    )


def has_split(paths: RunPaths, config: Config, split: str) -> bool:
    """Tell whether all scored folds have probabilities of `split`: oof, zero_shot or blank."""
    scored, _ = scored_folds(paths, config)
    return all(paths.fold(k).probs(split).exists() for k in scored)


def pooled(paths: RunPaths, config: Config, folds: pd.DataFrame, split: str) -> pd.DataFrame:
    """Read the probabilities of all held-out rows, fold after fold.

    Args:
        folds: `id` and `fold` of the train rows.
        split: oof, zero_shot or blank.

    Returns:
        `id`, `a` to `d`, `fold`.

    Raises:
        ArtifactError: a scored fold lacks the file, or the file has other rows.
    """
    scored, _ = scored_folds(paths, config)
    parts = []
    for k in scored:
        held_out_ids = folds["id"][folds["fold"] == k]
        probs = read_probabilities(paths.fold(k).probs(split), held_out_ids)
        parts.append(probs.assign(fold=k))
    return pd.concat(parts, ignore_index=True)


def rows_of(probs: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """The rows of `train` with the ids of `probs`, in the order of `probs`."""
    return train.set_index("id").loc[probs["id"]].reset_index()


def has_settings(fold: FoldPaths, config: Config) -> bool:
    """Tell whether the fold's adapter has the run's present settings, its own rungs included."""
    if not fold.adapter_config.exists():
        return True
    try:
        trained_with = settings_of(read_json(fold.adapter_config), fold.adapter_config)
    except TornFile:
        return False
    return trained_with.training_hash == fold_config(fold, config).training_hash

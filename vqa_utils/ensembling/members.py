"""From the folds' probabilities to one answer a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from vqa_utils.artifacts.files import ArtifactError, read_json
from vqa_utils.artifacts.fold_settings import fold_config
from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.config import Config, from_dict


@dataclass(frozen=True)
class Member:
    """One adapter's probabilities."""

    number: int
    """of its fold, or the refit's"""
    name: str
    test: pd.DataFrame
    """`id`, `a` to `d`: all rows of test.csv, in its order"""


def scored_adapters(paths: RunPaths, config: Config) -> list[int]:
    """The adapters of the run, the refit among them, whose test probabilities are there.

    One that was trained with other settings than the run has now counts as missing: it is no member.
    """
    return [
        k
        for k in config.adapter_numbers
        if paths.fold(k).probs("test").exists() and has_settings(paths.fold(k), config)
    ]


def scored_folds(paths: RunPaths, config: Config) -> tuple[list[int], list[int]]:
    """The folds whose test probabilities are there (see `scored_adapters`), and those that are missing.

    Raises:
        ArtifactError: none is there.
    """
    there = [k for k in scored_adapters(paths, config) if k in config.fold_numbers]
    if not there:
        raise ArtifactError(
            f"{paths.folder}: expected fold*/probs_test.csv, found none; run notebooks 03_train_fold and 04_infer first"
        )
    return there, [k for k in config.fold_numbers if k not in there]


def read_members(paths: RunPaths, config: Config, test_ids: Sequence[str]) -> list[Member]:
    """The members that are there, each checked against the rows that it should have scored."""
    return [
        Member(k, config.adapter_name(k), read_probabilities(paths.fold(k).probs("test"), test_ids))
        for k in scored_adapters(paths, config)
    ]


def describe_refit(paths: RunPaths, config: Config) -> str:
    """Whether a model of all rows is a member, and what the scores say of it, in words."""
    if not config.refit:
        return "No model is refitted on all rows."
    name = config.adapter_name(config.adapter_numbers[-1])
    if config.adapter_numbers[-1] not in scored_adapters(paths, config):
        return f"{name}: not scored yet, and no member."
    return f"{name}: trained on all rows, a member for the test rows alone; out-of-fold scores judge the folds' models, not it."


def pooled(paths: RunPaths, config: Config, folds: pd.DataFrame, rows: str) -> pd.DataFrame | None:
    """The out-of-fold probabilities of all scored folds as one frame, with the column `fold`; None where not asked for.

    Args:
        rows: oof, zero_shot or blank.
    """
    there = scored_folds(paths, config)[0]
    if not all(paths.fold(k).probs(rows).exists() for k in there):
        return None
    parts = [
        read_probabilities(paths.fold(k).probs(rows), folds["id"][folds["fold"] == k]).assign(
            fold=k
        )
        for k in there
    ]
    return pd.concat(parts, ignore_index=True)


def rows_of(probs: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """The train rows of the rows in `probs`, in their order."""
    return train.set_index("id").loc[probs["id"]].reset_index()


def has_settings(fold: FoldPaths, config: Config) -> bool:
    """Whether the fold's adapter was trained with the settings that the fold has now."""
    if not fold.adapter_config.exists():
        return True
    trained_with = from_dict(read_json(fold.adapter_config))
    return trained_with.training_hash == fold_config(fold, config).training_hash

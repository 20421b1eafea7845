"""From the folds' probabilities to one answer a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import softmax

from vqa_utils.artifacts.files import ArtifactError, hashes, read_json
from vqa_utils.artifacts.fold_settings import climbed, read_rungs
from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.config import Config, from_dict
from vqa_utils.errors import RunError
from vqa_utils.metrics import P_FLOOR, predictions
from vqa_utils.prompts import LETTERS

TIE_BREAK = 1e-3  # of a vote: what the mean weighs where letters have as many votes
ENSEMBLE = "05_ensemble"  # the notebook after which a run has all of its answers


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
    return [k for k in config.adapter_numbers if paths.fold(k).probs("test").exists() and has_settings(paths.fold(k), config)]


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


def read_refit(paths: RunPaths, config: Config) -> str:
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
    parts = [read_probabilities(paths.fold(k).probs(rows), folds["id"][folds["fold"] == k]).assign(fold=k) for k in there]
    return pd.concat(parts, ignore_index=True)


def rows_of(probs: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """The train rows of the rows in `probs`, in their order."""
    return train.set_index("id").loc[probs["id"]].reset_index()


def combined(frames: Sequence[pd.DataFrame], how: str) -> pd.DataFrame:
    """One distribution a row from the members': `id`, `a` to `d`.

    Args:
        frames: `id` and `a` to `d`, with the same ids in the same order.
        how: "mean"; "geometric", the normalised exp(mean log p); or "vote", the share of members that choose each letter, with
            the mean added at a weight that decides between equal shares alone.

    Raises:
        ValueError: there is no member, or two name different rows.
    """
    if not frames:
        raise ValueError("expected at least one member to combine, found none")
    ids = list(frames[0]["id"])
    if any(list(frame["id"]) != ids for frame in frames):
        raise ValueError("expected the same ids in the same order in all members, found different ones")
    values = np.stack([frame[list(LETTERS)].to_numpy() for frame in frames])  # [members, N, 4]
    probs = values.mean(axis=0)
    if how == "geometric":
        probs = softmax(np.log(values.clip(P_FLOOR)).mean(axis=0), axis=1)
    elif how == "vote":
        votes = sum(pd.get_dummies(predictions(frame)).reindex(columns=list(LETTERS), fill_value=0) for frame in frames)
        probs = (votes.to_numpy() + TIE_BREAK * probs) / (len(frames) + TIE_BREAK)
    return pd.DataFrame({"id": ids, **dict(zip(LETTERS, probs.T, strict=True))})


def agreement(members: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The share of rows on which each pair of members predicts the same letter: a symmetric table.

    Args:
        members: `a` to `d` by the member's name, the same rows in the same order.
    """
    letters = {name: predictions(probs).to_numpy() for name, probs in members.items()}
    return pd.DataFrame({a: {b: float((x == y).mean()) for b, y in letters.items()} for a, x in letters.items()})


def unanimity(members: Sequence[Member]) -> float:
    """The share of test rows on which all members predict the same letter."""
    letters = pd.DataFrame({member.number: predictions(member.test) for member in members})
    return float((letters.nunique(axis=1) == 1).mean())


def submission(sample: pd.DataFrame, probs: pd.DataFrame) -> pd.DataFrame:
    """`id`, `answer`: the ids of sample_submission.csv in its order, each with its most probable letter.

    Raises:
        ValueError: a row of `sample` has no probabilities.
    """
    answers = dict(zip(probs["id"], predictions(probs), strict=True))
    missing = [i for i in sample["id"] if i not in answers]
    if missing:
        raise ValueError(f"expected probabilities for every id of sample_submission.csv, found none for {missing[:3]}")
    return pd.DataFrame({"id": sample["id"], "answer": [answers[i] for i in sample["id"]]})


def has_settings(fold: FoldPaths, config: Config) -> bool:
    """Whether the fold's adapter was trained with the settings that the run has now, its own rungs of the ladder included."""
    if not fold.adapter_config.exists():
        return True
    wanted = climbed(config, read_rungs(fold.rungs, config))
    return from_dict(read_json(fold.adapter_config)).training_hash == wanted.training_hash


def check_data(paths: RunPaths, config: Config, hash_of: Callable[[Config], str]) -> None:
    """Check that the data is still what a finished run has seen.

    Args:
        hash_of: `runs.data_hash`, cached where many runs are about the same data.

    Raises:
        RunError: it has changed.
    """
    data = Config(data=config.data, limit=config.limit, extra_train=config.extra_train, paraphrase=config.paraphrase)
    if hash_of(data) != read_json(paths.stages / f"{ENSEMBLE}.json")["data"]:
        raise RunError(f"expected the data that it has seen in {config.data}, found other; bring back the files of then")


def check_finished(paths: RunPaths, config: Config) -> None:
    """Check that a run's answers are there, of all its adapters and of its settings now.

    Raises:
        RunError: what is missing, or has changed.
    """
    marker = paths.stages / f"{ENSEMBLE}.json"
    if not marker.exists():
        raise RunError(f"not finished: {len(list(paths.stages.glob('*.json')))} notebooks are whole, {ENSEMBLE} is missing")
    record = read_json(marker)
    files = record["inputs"] | record["outputs"]
    if record["config"] != config.hash_for(ENSEMBLE) or hashes([paths.folder / name for name in files], paths.folder) != files:
        raise RunError(f"not finished: its settings or files have changed since {ENSEMBLE}")
    missing = sorted(set(config.adapter_numbers) - set(scored_adapters(paths, config)))
    if missing:
        raise RunError(f"not finished: without scores: {', '.join(map(config.adapter_name, missing))}")

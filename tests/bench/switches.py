"""What each switch does to the out-of-fold score: the runs of a sweep over seeds, against those that have no switch on.

    python run_all.py sweep tests/bench/switches.yaml
    python tests/bench/switches.py RUN ...          # all runs of the sweep, and more

Runs that differ in their seed alone are one line. A row's difference to the runs without a switch is its mean over the seeds,
and its p-value that of flipping signs, a picture's rows together. Training seconds are of all folds, side by side as they ran.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import read_folds
from vqa_utils.ensembling._weights import probability_of, sign_flip_p
from vqa_utils.ensembling.members import pooled, rows_of
from vqa_utils.ensembling.other_runs import check_finished
from vqa_utils.metrics import correct
from vqa_utils.presets import differences, preset
from vqa_utils.running.terminal import print_table


def scored_rows(run_id: str) -> pd.DataFrame:
    """A line an out-of-fold row: `run`, `seed`, `id`, `right`, `loss`, and the `seconds` of the run's trainings."""
    paths, config = open_run(run_id)
    check_finished(paths, config)
    train = load_challenge(config).train
    probs = pooled(paths, config, read_folds(paths.folds, train), "oof")
    answers = rows_of(probs, train)["answer"]
    return pd.DataFrame({
        "run": run_id,
        "seed": config.seed,
        "id": probs["id"],
        "right": correct(probs, answers).astype(float),
        "loss": -np.log(probability_of(probs, answers)),
        "seconds": sum(read_json(paths.fold(number).meta)["seconds"] for number in config.fold_numbers),
    })  # fmt: skip


def switch_of(run_ids: Sequence[str]) -> dict[str, str]:
    """Each run's settings, without those that all have and the seed; "none" where that is all."""
    changed = {run_id: set(_settings(run_id)) for run_id in run_ids}
    common = set.intersection(*changed.values())
    return {
        run_id: ", ".join(sorted(names - common)) or "none" for run_id, names in changed.items()
    }


def _settings(run_id: str) -> list[str]:
    config = open_run(run_id)[1]
    changes = differences(config) | (
        {"data": config.data} if config.data != preset(config.preset).data else {}
    )
    return [f"{name}={value}" for name, value in changes.items() if name != "seed"]


def switches(run_ids: Sequence[str], pictures: pd.Series) -> pd.DataFrame:
    """A line a switch, which some runs must be without: accuracies, their mean, log loss, each with its difference to "none"
    and p, and training seconds.

    Args:
        pictures: each row's picture, by id.
    """
    rows = pd.concat(map(scored_rows, run_ids), ignore_index=True)
    rows["switch"] = rows["run"].map(switch_of(run_ids))
    seeds = rows.groupby("switch")["seed"].unique().map(sorted)
    if (seeds.map(tuple) != tuple(seeds.get("none", ()))).any():
        sys.exit(
            f"expected every switch, and runs without one, with the same seeds, found {seeds.to_dict()}"
        )
    means = rows.groupby(["switch", "id"])[["right", "loss"]].mean()
    seconds = rows.groupby(["switch", "seed"])["seconds"].first().groupby("switch").mean()
    lines, none = [], means.loc["none"]
    for switch, found in means.groupby(level=0):
        change = found.droplevel(0) - none
        by_seed = rows[rows["switch"] == switch].groupby("seed")["right"].mean()
        line = {"switch": switch, "accuracy by seed": " ".join(f"{value:.3f}" for value in by_seed)}
        for name, title in (("right", "accuracy"), ("loss", "log loss")):
            p = (
                sign_flip_p(change[name].to_numpy(), pictures.loc[change.index], seed=0)
                if switch != "none"
                else 1.0
            )
            line |= {
                title: found[name].mean(),
                f"{title} change": change[name].mean(),
                f"p ({title})": p,
            }
        lines.append(line | {"training": seconds[switch] / seconds["none"]})
    return pd.DataFrame(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    run_ids = parser.parse_args().runs
    plain = next(
        (run_id for run_id, switch in switch_of(run_ids).items() if switch == "none"), run_ids[0]
    )
    paths, config = open_run(plain)  # whose groups are pictures
    pictures = read_folds(paths.folds, load_challenge(config).train).set_index("id")["group"]
    print_table(Console(width=200), "out of fold", switches(run_ids, pictures))

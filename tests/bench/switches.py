"""How does each switch change the out-of-fold score? A sweep over seeds against runs without one.

    python run_all.py sweep tests/bench/switches.yaml
    python tests/bench/switches.py RUN ...          # all runs of the sweep, and more
    python tests/bench/switches.py --final RUN ...  # as 05 leaves the rows: second_look, base_member

Runs that differ in their seed alone are one line. A row's difference to the runs without a switch
is its mean over the seeds, and its p-value that of flipping signs, a picture's rows together.
Training seconds are of all folds, side by side as they ran.
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
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.artifacts.run import open_run
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.folds import read_folds
from vqa_utils.ensembling._weights import probability_of, sign_flip_p
from vqa_utils.ensembling.members import pooled, rows_of
from vqa_utils.ensembling.other_runs import check_finished
from vqa_utils.metrics import correct
from vqa_utils.presets import differences, preset
from vqa_utils.running.terminal.tables import print_table

NO_SWITCH = "none"
SCORES = {"right": "accuracy", "loss": "log loss"}  # title by column


def scored_rows(run_id: str, *, final: bool = False) -> pd.DataFrame:
    """Score a run's out-of-fold rows: as its folds scored them, or as 05_ensemble left them.

    Returns:
        One line per row: `run`, `seed`, `id`, `right`, `loss`, and `seconds` of its trainings.
    """
    paths, config = open_run(run_id)
    check_finished(paths, config)
    train = load_challenge(config).train
    if final:
        probs = read_probabilities(paths.ensemble / "probs_oof.csv")
    else:
        probs = pooled(paths, config, read_folds(paths.folds, train), "oof")
    answers = rows_of(probs, train)["answer"]
    seconds = [read_json(paths.fold(number).meta)["seconds"] for number in config.fold_numbers]
    return pd.DataFrame(
        {
            "run": run_id,
            "seed": config.seed,
            "id": probs["id"],
            "right": correct(probs, answers).astype(float),
            "loss": -np.log(probability_of(probs, answers)),
            "seconds": sum(seconds),
        }
    )


def switch_of(run_ids: Sequence[str]) -> dict[str, str]:
    """Name each run by its settings, without those that all have and the seed."""
    settings = {run_id: set(_settings(run_id)) for run_id in run_ids}
    common = set.intersection(*settings.values())
    switches = {}
    for run_id, of_run in settings.items():
        switches[run_id] = ", ".join(sorted(of_run - common)) or NO_SWITCH
    return switches


def _settings(run_id: str) -> list[str]:
    _, config = open_run(run_id)
    changes = differences(config)
    if config.data != preset(config.preset).data:
        changes = {**changes, "data": config.data}
    return [f"{name}={value}" for name, value in changes.items() if name != "seed"]


def switches(run_ids: Sequence[str], pictures: pd.Series, *, final: bool = False) -> pd.DataFrame:
    """Compare the switches with the runs that have none.

    Args:
        run_ids: of finished runs.
        pictures: each row's picture, by id.
        final: as of `scored_rows`.

    Returns:
        One line per switch: accuracy by seed; accuracy and log loss, their means with the change to
        NO_SWITCH and its p; training seconds as a multiple of those without.
    """
    scored = [scored_rows(run_id, final=final) for run_id in run_ids]
    rows = pd.concat(scored, ignore_index=True)
    rows["switch"] = rows["run"].map(switch_of(run_ids))
    check_seeds(rows)

    means = rows.groupby(["switch", "id"])[list(SCORES)].mean()  # over the seeds
    none = means.loc[NO_SWITCH]
    seconds = rows.groupby(["switch", "seed"])["seconds"].first().groupby("switch").mean()
    lines = []
    for switch, of_switch in rows.groupby("switch"):
        by_seed = of_switch.groupby("seed")["right"].mean()
        line = {
            "switch": switch,
            "accuracy by seed": " ".join(f"{accuracy:.3f}" for accuracy in by_seed),
        }
        found = means.loc[switch]
        change = found - none
        for column, title in SCORES.items():
            p = 1.0
            if switch != NO_SWITCH:
                p = sign_flip_p(change[column].to_numpy(), pictures.loc[change.index], seed=0)
            line[title] = found[column].mean()
            line[f"{title} change"] = change[column].mean()
            line[f"p ({title})"] = p
        line["training"] = seconds[switch] / seconds[NO_SWITCH]
        lines.append(line)
    return pd.DataFrame(lines)


def check_seeds(rows: pd.DataFrame) -> None:
    """Stop unless every switch, and no switch, was run with the same seeds."""
    seeds = rows.groupby("switch")["seed"].unique().map(sorted).to_dict()
    if any(of_switch != seeds.get(NO_SWITCH) for of_switch in seeds.values()):
        sys.exit(f"expected every switch, and runs without one, with the same seeds, found {seeds}")


def main() -> None:
    """Print the table of the runs on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--final", action="store_true", help="score ensemble/probs_oof.csv")
    args = parser.parse_args()
    run_ids = args.runs

    # The groups of a run without a switch are pictures; group_questions, say, makes others
    names = switch_of(run_ids)
    without = [run_id for run_id in run_ids if names[run_id] == NO_SWITCH]
    paths, config = open_run((without or run_ids)[0])
    folds = read_folds(paths.folds, load_challenge(config).train)
    table = switches(run_ids, folds.set_index("id")["group"], final=args.final)
    print_table(Console(width=200), "out of fold", table)


if __name__ == "__main__":
    main()

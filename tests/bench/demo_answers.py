"""How many of the demo's test rows do runs answer right? easy-VQA has the answers.

    python tests/bench/demo_answers.py RUN RUN ...

No notebook sees these answers. With them one can measure what no out-of-fold score judges, such as
a refit: take runs with it and without, each with several seeds. The p-value is McNemar's against
the first run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from more_easy_vqa import known_test_answers

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.metrics import accuracy_interval, correct, log_loss, mcnemar
from vqa_utils.running.terminal.tables import print_table


def scores_of(run_ids: Sequence[str]) -> pd.DataFrame:
    """Score the test answers of runs that answered the same rows (the same --limit).

    Returns:
        One line per run: `run`, `rows`, `accuracy` with its 95 % interval from `low` to `high`,
        `log_loss`, `mcnemar_p`.
    """
    known = known_test_answers().set_index("id")["answer"]
    first_right = None
    lines = []
    for run_id in run_ids:
        probs = read_probabilities(RunPaths(run_id).ensemble / "probs_test.csv")
        probs = probs.sort_values("id", ignore_index=True)
        answers = known.loc[probs["id"]].reset_index(drop=True)
        right = correct(probs, answers)  # bool [N]
        if first_right is None:
            first_right = right
        low, high = accuracy_interval(right)
        line = {
            "run": run_id,
            "rows": len(right),
            "accuracy": right.mean(),
            "low": low,
            "high": high,
            "log_loss": log_loss(probs, answers),
            "mcnemar_p": mcnemar(first_right, right),
        }
        lines.append(line)
    return pd.DataFrame(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    print_table(Console(), "the demo's test rows", scores_of(parser.parse_args().runs))

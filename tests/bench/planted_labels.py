"""Are wrong labels found, and is it worth training without them? Planted ones tell.

    python tests/bench/planted_labels.py --share 0.03 --seeds 1 2 3
    python tests/bench/planted_labels.py --data hard-vqa

Some labels of a drawn challenge are changed. A run lists its suspects, which are compared with
those; a second run leaves the suspects out, a third the planted rows themselves. The test rows,
whose answers no run sees, judge all three.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from more_easy_vqa import known_test_answers

from vqa_utils.artifacts.paths import ROOT, RUNS_VARIABLE
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.config import DEMO_DATA, HARD_DATA
from vqa_utils.data.known import hard_vqa
from vqa_utils.data.known.challenges import KNOWN_CHALLENGES
from vqa_utils.metrics import correct, log_loss
from vqa_utils.prompts import LETTERS


def plant(folder: Path, share: float, seed: int) -> list[str]:
    """Change the labels of a share of train.csv's rows to another letter; return their ids."""
    rng = np.random.default_rng(seed)
    train = pd.read_csv(folder / "train.csv", dtype=str)
    chosen = rng.choice(len(train), round(share * len(train)), replace=False)
    for row in chosen:
        others = [letter for letter in LETTERS if letter != train.at[row, "answer"]]
        train.at[row, "answer"] = rng.choice(others)
    train.to_csv(folder / "train.csv", index=False)
    return list(train["id"][chosen])


def answers_of(data: str, folder: Path) -> pd.DataFrame:
    """`id` and `answer` of a known challenge's test rows: test.csv lacks the answers."""
    if data == DEMO_DATA:
        return known_test_answers()
    ids = pd.read_csv(folder / "test.csv", dtype=str)["id"]
    drawn = hard_vqa.draw_examples("test", len(ids))
    return pd.DataFrame({"id": ids, "answer": [example.columns["answer"] for example in drawn]})


def run_demo(data: Path, runs: Path, seed: int, drop: Sequence[str] = ()) -> Path:
    """Execute a run of the demo on other data, without some rows; return its folder."""
    name = f"run-{len(list(runs.glob('run-*')))}"
    command = [sys.executable, "run_all.py", "--data", str(data), "--run-id", name]
    command += ["--set", f"seed={seed}", "--set", "baselines=false"]
    if drop:
        runs.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"id": drop}).to_csv(runs / f"{name}.csv", index=False)
        command += ["--drop", str(runs / f"{name}.csv")]
    subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {RUNS_VARIABLE: str(runs)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return runs / name


def score_test(run: Path, answers: pd.DataFrame) -> str:
    """Say a run's accuracy and log loss on the test rows."""
    probs = read_probabilities(run / "ensemble" / "probs_test.csv")
    right = answers.set_index("id")["answer"].loc[probs["id"]]
    return f"{correct(probs, right).mean():.4f} right, log loss {log_loss(probs, right):.4f}"


def main(args: argparse.Namespace) -> None:
    """Plant, run and compare, for each seed."""
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            data, runs = Path(temporary) / "data", Path(temporary) / "runs"
            KNOWN_CHALLENGES[args.data].write(data)
            answers = answers_of(args.data, data)
            planted = plant(data, args.share, seed)
            with_all = run_demo(data, runs, seed)
            report = with_all / "report" / "suspect_labels.csv"
            suspects = list(pd.read_csv(report, dtype=str)["id"])
            found = set(suspects) & set(planted)
            print(
                f"seed {seed}: {len(planted)} planted, {len(suspects)} suspects, {len(found)} of "
                f"them planted: precision {len(found) / max(1, len(suspects)):.3f}, recall "
                f"{len(found) / len(planted):.3f}",
                flush=True,
            )
            print("  with all rows:", score_test(with_all, answers), flush=True)
            for name, drop in (("suspects", suspects), ("planted rows", planted)):
                scores = score_test(run_demo(data, runs, seed, drop), answers)
                print(f"  without the {name}:", scores, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=[DEMO_DATA, HARD_DATA], default=DEMO_DATA)
    parser.add_argument("--share", type=float, default=0.03, help="of the labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    main(parser.parse_args())

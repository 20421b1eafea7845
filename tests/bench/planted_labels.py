"""Are wrong labels found? The demo, with some of its labels changed, tells.

    python tests/bench/planted_labels.py --share 0.03 --seeds 1 2 3

Each run writes `report/suspect_labels.csv`; its rows are compared with those that were changed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vqa_utils.artifacts.paths import ROOT, RUNS_VARIABLE
from vqa_utils.data.known.easy_vqa import write_challenge
from vqa_utils.prompts import LETTERS


def plant(folder: Path, share: float, seed: int) -> set[str]:
    """Change the labels of a share of train.csv's rows to another letter; return their ids."""
    rng = np.random.default_rng(seed)
    train = pd.read_csv(folder / "train.csv", dtype=str)
    chosen = rng.choice(len(train), round(share * len(train)), replace=False)
    for row in chosen:
        others = [letter for letter in LETTERS if letter != train.at[row, "answer"]]
        train.at[row, "answer"] = rng.choice(others)
    train.to_csv(folder / "train.csv", index=False)
    return set(train["id"][chosen])


def run_demo(data: Path, runs: Path, seed: int) -> Path:
    """Execute a run of the demo on other data; return its report's folder."""
    name = f"planted-{seed}"
    command = [sys.executable, "run_all.py", "--data", str(data), "--run-id", name]
    command += ["--set", f"seed={seed}", "--set", "baselines=false"]
    subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {RUNS_VARIABLE: str(runs)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return runs / name / "report"


def main(args: argparse.Namespace) -> None:
    """Plant, run and compare, for each seed."""
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            data = Path(temporary) / "data"
            write_challenge(data)
            planted = plant(data, args.share, seed)
            report = run_demo(data, Path(temporary) / "runs", seed)
            suspects = set(pd.read_csv(report / "suspect_labels.csv", dtype=str)["id"])
        found = suspects & planted
        precision = len(found) / max(1, len(suspects))
        recall = len(found) / len(planted)
        print(
            f"seed {seed}: {len(planted)} planted, {len(suspects)} suspects, {len(found)} of them "
            f"planted: precision {precision:.3f}, recall {recall:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.03, help="of the labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    main(parser.parse_args())

"""How do time and memory of the stages without torch grow with the rows?

    python tests/bench/stages.py --rows 1000 10000 100000 --out results.json

A made-up challenge for each size: that many train rows and a quarter as many test rows, each with
an image file of its own, four files to a picture, half of them PNG and half JPEG. 01_eda, 02_folds,
05_ensemble and 06_analysis run as `run_all.py` runs them, on made-up probabilities of three folds.
Before and between notebooks, `run_all.py` itself checks the data and hashes it: that is the line
`run_all`. Peak memory is the resident one of the kernel, or of `run_all`.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console
from scipy.special import softmax

from vqa_utils.artifacts.files import write_csv, write_json
from vqa_utils.artifacts.paths import RUNS_VARIABLE, RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.config import to_dict
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.presets import preset
from vqa_utils.prompts import LETTERS
from vqa_utils.running.notebooks.execution import execute
from vqa_utils.running.resolution import start_run
from vqa_utils.running.terminal.tables import print_table

STAGES = ("run_all", "01_eda", "02_folds", "05_ensemble", "06_analysis")
FILES_A_PICTURE = 4
QUESTIONS = (
    ("is there a {}?", ("yes", "no", "maybe", "unknown")),
    ("how many things are {}?", ("one", "two", "three", "four or more")),
    ("이 그림에 있는 {}은 무슨 색인가요?", ("빨간색", "파란색", "흰색", "회색")),
    ("what stands beside the {}?", ("a tree", "a car with its lights on", "a house", "nothing")),
)
WORDS = ("cat", "bridge", "sign", "window")
ANSWER_LOGITS = {"oof": 3, "zero_shot": 1, "blank": 0}  # how much more the answer gets, by split


def write_challenge(folder: Path, rows: int, side_px: int, rng: np.random.Generator) -> None:
    """Write train.csv with `rows` rows, test.csv with a quarter of them, and the images."""
    train = made_up_rows(folder, "train", rows, side_px, rng)
    test = made_up_rows(folder, "test", rows // 4, side_px, rng)
    write_csv(folder / "train.csv", train)
    write_csv(folder / "test.csv", test.drop(columns="answer"))
    write_csv(folder / "sample_submission.csv", test[["id"]].assign(answer="a"))


def made_up_rows(
    folder: Path, split: str, count: int, side_px: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Write the images of a split; return its rows, with random questions and answers."""
    (folder / split).mkdir(parents=True)
    paths = write_images(folder, split, count, side_px, rng)
    kinds = rng.integers(len(QUESTIONS), size=count)
    words = rng.choice(WORDS, count)
    rows = []
    for number in range(count):
        question, options = QUESTIONS[kinds[number]]
        row = {
            "id": f"{split}_{number:06d}",
            "path": paths[number],
            "question": question.format(words[number]),
            **dict(zip(LETTERS, options, strict=True)),
        }
        rows.append(row)
    return pd.DataFrame(rows).assign(answer=rng.choice(LETTERS, count))


def write_images(
    folder: Path, split: str, count: int, side_px: int, rng: np.random.Generator
) -> list[str]:
    """Write an image for each row, FILES_A_PICTURE files to a picture; return their paths."""
    paths = []
    for number in range(count):
        picture, copy = divmod(number, FILES_A_PICTURE)
        suffix = ("png", "jpg")[picture % 2]
        path = f"{split}/{number:06d}.{suffix}"
        if copy == 0:
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            smooth = Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BILINEAR)
            smooth.save(folder / path)
        else:
            (folder / path).hardlink_to(folder / paths[number - copy])
        paths.append(path)
    return paths


def write_scores(paths: RunPaths, folder: Path, rng: np.random.Generator) -> None:
    """Write the results of 03_train_fold and 04_infer for three folds, mostly right."""
    folds = pd.read_csv(paths.folds, dtype=str)
    test = pd.read_csv(folder / "test.csv", dtype=str)
    train = pd.read_csv(folder / "train.csv", dtype=str)
    for number in sorted(folds["fold"].unique()):
        fold = paths.fold(number)
        held_out = train[(folds["fold"] == number).to_numpy()]
        for split, bonus in ANSWER_LOGITS.items():
            write_probabilities(fold.probs(split), made_up_probabilities(held_out, bonus, rng))
        write_probabilities(fold.probs("test"), made_up_probabilities(test, 0, rng))
        write_json(fold.meta, {"seconds": 60, "peak_memory_gib": [1.0]})


def made_up_probabilities(
    rows: pd.DataFrame, answer_logit: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Draw probabilities from normal logits, with `answer_logit` more at the answer if not 0."""
    logits = rng.normal(size=(len(rows), len(LETTERS)))  # [N, 4]
    if answer_logit:
        columns = rows["answer"].map(LETTERS.index)
        logits[np.arange(len(rows)), columns] += answer_logit
    probs = pd.DataFrame(softmax(logits, axis=1), columns=list(LETTERS))
    return probs.assign(id=rows["id"].to_numpy())


def measure(stage: str, paths: RunPaths, folder: Path) -> dict[str, float | str]:
    """Run a stage in this process, a fresh one; return its seconds and peak resident memory."""
    config = preset("demo", data=str(folder))
    start = time.perf_counter()
    if stage == "run_all":
        start_run(paths, config)
        data_hash(config, paths.images)
        who = resource.RUSAGE_SELF
    else:
        write_json(paths.config, to_dict(config))
        execute(stage, paths.notebooks / f"{stage}.ipynb", {"run_id": paths.run_id})
        who = resource.RUSAGE_CHILDREN  # the peak is that of the largest child: the kernel
    seconds = time.perf_counter() - start
    used = resource.getrusage(who)
    return {
        "stage": stage,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / 1024),
    }


def measure_all(
    rows: int, side_px: int, stages: Sequence[str]
) -> list[dict[str, float | str | int]]:
    """Run the stages, in their order, at one size."""
    rng = np.random.default_rng(0)
    spawn = multiprocessing.get_context("spawn")
    results = []
    with tempfile.TemporaryDirectory() as work:
        os.environ[RUNS_VARIABLE] = f"{work}/runs"
        folder = Path(work) / "data"
        paths = RunPaths("stages")
        write_challenge(folder, rows, side_px, rng)
        for stage in stages:
            if stage == "05_ensemble":
                write_scores(paths, folder, rng)
            with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
                measured = fresh.submit(measure, stage, paths, folder).result()
            results.append({"rows": rows, **measured})
            print(json.dumps(results[-1]), flush=True)
    return results


def main() -> None:
    """Measure each size, print a table, and write what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument(
        "--stages",
        nargs="+",
        default=STAGES,
        choices=STAGES,
        help="a later one reads what those before wrote",
    )
    parser.add_argument("--side", type=int, default=64, help="of the pictures, px")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = []
    for rows in args.rows:
        results += measure_all(rows, args.side, args.stages)
    table = pd.DataFrame(results).pivot(
        index="stage", columns="rows", values=["seconds", "cpu_seconds", "peak_mib"]
    )
    table.columns = [f"{value}, {rows} rows" for value, rows in table.columns]
    print_table(Console(width=120), "stages without torch", table.reset_index())
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

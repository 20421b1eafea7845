"""How do time and memory of the stages without torch grow with the rows?

    python tests/bench/stages.py --rows 1000 10000 100000 --out results.json

A made-up challenge for each size: that many train rows and a quarter as many test rows, each with an image file of its
own, four files to a picture, half of them PNG and half JPEG. 01_eda, 02_folds, 05_ensemble and 06_analysis run as
`run_all.py` runs them, on made-up probabilities of three folds. Before and between notebooks, `run_all.py` itself checks
the data and hashes it: that is the line `run_all`. Peak memory is the resident one of the kernel, or of `run_all`.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console

from vqa_utils.artifacts.files import write_csv, write_json
from vqa_utils.artifacts.paths import RUNS_VARIABLE, RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.config import to_dict
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.presets import preset
from vqa_utils.running.execution import execute
from vqa_utils.running.resolution import start_run
from vqa_utils.running.terminal import print_table

STAGES = ("run_all", "01_eda", "02_folds", "05_ensemble", "06_analysis")
FILES_A_PICTURE = 4
QUESTIONS = (
    ("is there a {}?", ("yes", "no", "maybe", "unknown")),
    ("how many things are {}?", ("one", "two", "three", "four or more")),
    ("이 그림에 있는 {}은 무슨 색인가요?", ("빨간색", "파란색", "흰색", "회색")),
    ("what stands beside the {}?", ("a tree", "a car with its lights on", "a house", "nothing")),
)
WORDS = ("cat", "bridge", "sign", "window")


def write_challenge(folder: Path, rows: int, side_px: int, rng: np.random.Generator) -> None:
    """train.csv with `rows` rows, test.csv with a quarter of them, sample_submission.csv and the images."""
    for split, count in (("train", rows), ("test", rows // 4)):
        (folder / split).mkdir(parents=True)
        paths = [
            f"{split}/{i:06d}.{('png', 'jpg')[i // FILES_A_PICTURE % 2]}" for i in range(count)
        ]
        for i, path in enumerate(paths):
            if i % FILES_A_PICTURE == 0:
                coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BILINEAR).save(
                    folder / path
                )
            else:
                (folder / path).hardlink_to(folder / paths[i - i % FILES_A_PICTURE])
        kinds, words = rng.integers(len(QUESTIONS), size=count), rng.choice(WORDS, count)
        frame = pd.DataFrame({
            "id": [f"{split}_{i:06d}" for i in range(count)],
            "path": paths,
            "question": [QUESTIONS[kind][0].format(word) for kind, word in zip(kinds, words, strict=True)],
            **{letter: [QUESTIONS[kind][1][i] for kind in kinds] for i, letter in enumerate("abcd")},
            "answer": rng.choice(list("abcd"), count),
        })  # fmt: skip
        write_csv(
            folder / f"{split}.csv", frame if split == "train" else frame.drop(columns="answer")
        )
    write_csv(folder / "sample_submission.csv", frame[["id"]].assign(answer="a"))


def write_scores(paths: RunPaths, folder: Path, rng: np.random.Generator) -> None:
    """What three folds of 03_train_fold and 04_infer leave: probabilities, mostly right, and a training's facts."""
    folds, test = pd.read_csv(paths.folds, dtype=str), pd.read_csv(folder / "test.csv", dtype=str)
    answer = pd.read_csv(folder / "train.csv", dtype=str)["answer"].map("abcd".index).to_numpy()
    for k in sorted(folds["fold"].unique()):
        held_out = (folds["fold"] == k).to_numpy()
        for rows, ids in (("oof", folds["id"][held_out]), ("zero_shot", folds["id"][held_out]),
                          ("blank", folds["id"][held_out]), ("test", test["id"])):  # fmt: skip
            logits = rng.normal(size=(len(ids), 4))
            if rows != "test":
                logits[np.arange(len(ids)), answer[held_out]] += {
                    "oof": 3,
                    "zero_shot": 1,
                    "blank": 0,
                }[rows]
            values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            frame = pd.DataFrame({"id": ids.to_numpy(), **dict(zip("abcd", values.T, strict=True))})
            write_probabilities(paths.fold(k).probs(rows), frame)
        write_json(paths.fold(k).meta, {"seconds": 60, "peak_memory_gib": [1.0]})


def measure(stage: str, paths: RunPaths, folder: Path) -> dict[str, float | str]:
    """In a process of its own: seconds and peak resident memory of a stage."""
    config, start = preset("demo", data=str(folder)), time.perf_counter()
    if stage == "run_all":
        start_run(paths, config)
        data_hash(config, paths.images)
    else:
        write_json(paths.config, to_dict(config))
        execute(stage, paths.notebooks / f"{stage}.ipynb", {"run_id": paths.run_id})
    seconds = time.perf_counter() - start
    who = (
        resource.RUSAGE_SELF if stage == "run_all" else resource.RUSAGE_CHILDREN
    )  # of these, the largest: the kernel
    used = resource.getrusage(who)
    cpu_seconds = used.ru_utime + used.ru_stime
    return {"stage": stage, "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1),
            "peak_mib": round(used.ru_maxrss / 1024)}  # fmt: skip


def measure_all(rows: int, side_px: int, stages: list[str]) -> list[dict[str, float | str]]:
    """The stages, in their order, at one size."""
    rng, results = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as work:
        os.environ[RUNS_VARIABLE] = f"{work}/runs"
        folder, paths = Path(work) / "data", RunPaths("stages")
        write_challenge(folder, rows, side_px, rng)
        for stage in stages:
            if stage == "05_ensemble":
                write_scores(paths, folder, rng)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                results.append(
                    {"rows": rows, **fresh.submit(measure, stage, paths, folder).result()}
                )
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
    results = [result for rows in args.rows for result in measure_all(rows, args.side, args.stages)]
    table = pd.DataFrame(results).pivot(
        index="stage", columns="rows", values=["seconds", "cpu_seconds", "peak_mib"]
    )
    table.columns = [f"{value}, {rows} rows" for value, rows in table.columns]
    print_table(Console(width=120), "stages without torch", table.reset_index())
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

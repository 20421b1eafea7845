"""How much memory and time do pictures of 123 megapixels take in the notebooks 01 to 04?

    python tests/bench/large_pictures.py --out results.json --settings folds_at_once=1

A made-up challenge of 100 pictures, three of them large: two PNGs and a JPEG with gradients and
noise. Each stage is a command of its own, and the proportional set size of its whole process tree
is sampled. The same is done with three small pictures in their place, and with the large ones once
more, when their copies are kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vqa_utils.artifacts.files import write_csv, write_json
from vqa_utils.artifacts.paths import ROOT, RUNS_VARIABLE
from vqa_utils.prompts import LETTERS

STAGES = ("01_eda", "02_folds", "03_train_fold", "04_infer")
LARGE = {7: ".png", 31: ".jpg", 90: ".png"}  # by row; the last is of the test set
SMALL_PX = 64
NOISE = 8  # standard deviation, of 255: a camera's at high sensitivity
STRIP_ROWS = 256
COLOURS = ("red", "green", "blue", "white")
SAMPLE_SECONDS = 0.1


def write_challenge(folder: Path, rows: int, side: int) -> None:
    """Write a challenge whose pictures in `LARGE` have sides of `side` px."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    table = []
    for row in range(rows):
        is_large = row in LARGE
        path = f"images/{row}{LARGE.get(row, '.png')}"
        picture = noisy_gradients(side if is_large else SMALL_PX, rng)
        options = {"quality": 90} if path.endswith("jpg") else {"compress_level": 1}
        picture.save(folder / path, **options)
        options = dict(zip(LETTERS, np.roll(COLOURS, row), strict=True))
        table.append({"id": f"r{row}", "path": path, "question": "Which colour?", **options})
    frame = pd.DataFrame(table)
    train, test = frame.head(rows * 4 // 5), frame.tail(rows - rows * 4 // 5)
    write_csv(folder / "train.csv", train.assign(answer=rng.choice(LETTERS, len(train))))
    write_csv(folder / "test.csv", test)
    write_csv(folder / "sample_submission.csv", test[["id"]].assign(answer="a"))


def noisy_gradients(side: int, rng: np.random.Generator) -> Image.Image:
    """Draw a picture that no format compresses well."""
    pixels = np.empty((side, side, 3), np.uint8)
    across = np.linspace(0, 1, side, dtype=np.float32)
    for top in range(0, side, STRIP_ROWS):
        down = across[top : top + STRIP_ROWS, None]
        waves = [np.sin(9 * across) * np.cos(7 * down), across * down, np.sin(30 * (across + down))]
        noise = rng.normal(0, NOISE, (*waves[0].shape, 3)).astype(np.float32)
        strip = 127 + 90 * np.stack(waves, -1) + noise
        pixels[top : top + STRIP_ROWS] = strip.clip(0, 255)
    return Image.fromarray(pixels)


def tree_bytes(process: psutil.Process) -> int:
    """Sum the proportional set sizes of a process and all below it."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
            continue
    return total


def run_stage(
    stage: str, data: Path, runs: Path, run_id: str, settings: list[str]
) -> dict[str, Any]:
    """Run one stage by run_all.py; return its seconds and the peak of its process tree."""
    command = [sys.executable, "run_all.py", "--run-id", run_id, "--only", stage]
    is_new = not (runs / run_id).exists()
    if is_new:
        command += ["--data", str(data)]
        command += [word for setting in settings for word in ("--set", setting)]
    else:
        command += ["--resume"]
    environment = os.environ | {RUNS_VARIABLE: str(runs)}
    start = time.perf_counter()
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    process, peak = psutil.Process(running.pid), 0
    while running.poll() is None:
        peak = max(peak, tree_bytes(process))
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - start
    if running.returncode:
        raise RuntimeError(f"{' '.join(command)}: expected exit 0, found {running.returncode}")
    return {"stage": stage, "seconds": round(seconds, 1), "peak_gb": round(peak / 1e9, 2)}


def main() -> None:
    """Write the two challenges, run them, and write what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--side", type=int, default=11_100, help="px of a large picture")
    parser.add_argument("--settings", nargs="*", default=[], help="of the runs, NAME=VALUE")
    parser.add_argument("--stages", nargs="+", default=STAGES)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_challenge(folder / "small", args.rows, SMALL_PX)
        write_challenge(folder / "large", args.rows, args.side)
        for run_id, data in (("small", "small"), ("large", "large"), ("copies-kept", "large")):
            for stage in args.stages:
                measured = run_stage(stage, folder / data, folder / "runs", run_id, args.settings)
                results.append({"pictures": run_id, **measured})
                print(json.dumps(results[-1]), flush=True)
    write_json(args.out, results)


if __name__ == "__main__":
    main()

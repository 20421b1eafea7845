"""How much sooner does a run at the real shape end, if its folds share a base and take turns?

    # Qwen3-VL-30B-A3B's shape, random weights, three folds of 64 rows, on two GPUs
    python tests/bench/whole_run.py --out whole_run.json

One run through run_all.py and its notebooks with folds around one base, and one with `folds_at_once=1`
in which each notebook loads the base for itself. Both find the packed weights on the disk, kept by an
earlier run, and encode the pictures anew.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vqa_utils.artifacts.paths import ROOT, RUNS_VARIABLE
from vqa_utils.config import Config
from vqa_utils.presets import preset

TEST_ROWS = 64
SERIES = "import run_all; run_all.main()"
NO_LENDER = "from vqa_utils.sharing import shared_base; shared_base.lends = lambda *_: False"


def settings(args: argparse.Namespace) -> Config:
    """Return the settings under which the packed weights are kept."""
    limits = tuple(args.limit for _ in range(args.gpus))
    return preset("safe", max_memory=limits, cache_dir=str(args.folder / "kept"), data="-")


def write_model(folder: Path, config: Config) -> None:
    """Write config and processor, and a file of weights with a header and nothing in it.

    The file is sparse, of the size of the real one. It is not read: packed weights are kept.
    """
    from random_base import config_with_tokens, make_processor

    from vqa_utils.planning.shapes import read_shape

    processor = make_processor(patch_px=16)
    processor.save_pretrained(folder)
    published = config_with_tokens(config, processor)
    (folder / "config.json").write_text(json.dumps(published))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in read_shape(published).parameters.items():
        start = end
        count = 1
        for size in shape:
            count *= size
        end += 2 * count  # bf16
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def keep_random_weights(args: argparse.Namespace) -> None:
    """Write a model, and pack random weights to where a run looks for its kept copy."""
    from random_base import load_stock, make_processor

    from vqa_utils.model.loading import _keep, _kept_copy, compute_dtype

    config = settings(args)
    model = args.folder / "model"
    model.mkdir()
    write_model(model, config)
    copy = _kept_copy(replace(config, model=str(model)), str(compute_dtype(config)))
    assert copy is not None
    _keep(load_stock(config, make_processor(patch_px=16)), copy)
    assert copy.is_dir()


def write_challenge(folder: Path, side: int, train: int) -> None:
    """Write a challenge of noise, with made-up questions."""
    from random_base import make_rows

    folder.mkdir()
    rows = make_rows(folder, side, train + TEST_ROWS)
    test = rows.tail(TEST_ROWS)
    rows.head(train).to_csv(folder / "train.csv", index=False)
    test.drop(columns="answer").to_csv(folder / "test.csv", index=False)
    test[["id", "answer"]].to_csv(folder / "sample_submission.csv", index=False)


def run_series(args: argparse.Namespace, name: str, *, alone: bool) -> dict[str, Any]:
    """Execute a run and time it; its words go beside the results, each line with its second."""
    code = f"{NO_LENDER}; {SERIES}" if alone else SERIES
    folds_at_once = 1 if alone else args.folds_at_once
    changes = {
        "cache_dir": args.folder / "kept",
        "max_memory": ",".join([args.limit] * args.gpus),
        "folds_at_once": folds_at_once,
    }
    command = [sys.executable, "-c", code, "--preset", "safe", "--run-id", name]
    command += ["--model", str(args.folder / "model"), "--data", str(args.folder / "data")]
    for setting, value in changes.items():
        command += ["--set", f"{setting}={value}"]
    words = args.out.with_name(f"{name}.log")
    start = time.perf_counter()
    with (
        words.open("w") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {RUNS_VARIABLE: str(args.folder / "runs")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(f"{time.perf_counter() - start:6.1f} {line}")
    took = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(words.read_text()[-5000:])
    return {"run": name, "folds_at_once": folds_at_once, "seconds": round(took, 1)}


def main(args: argparse.Namespace) -> None:
    """Make model and data, and execute the run in both ways."""
    with tempfile.TemporaryDirectory(dir=args.disk) as folder:
        args.folder = Path(folder)
        start = time.perf_counter()
        command = [sys.executable, __file__, "--part", "keep", "--folder", folder]
        command += ["--limit", args.limit, "--gpus", str(args.gpus)]
        subprocess.run(command, check=True, cwd=ROOT)
        write_challenge(args.folder / "data", preset("safe").image_side, 3 * args.rows)
        print(f"prepared in {time.perf_counter() - start:.0f} s", flush=True)
        results: list[dict[str, Any]] = []
        for name, alone in (("shared", False), ("alone", True)):
            results.append(run_series(args, name, alone=alone))
            for features in (args.folder / "kept").glob("*-features-*"):
                shutil.rmtree(features)
            print(json.dumps(results[-1]), flush=True)
            args.out.write_text(json.dumps(results, indent=1))
        print(f"ratio {results[1]['seconds'] / results[0]['seconds']:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=64, help="of each of the three folds")
    parser.add_argument("--folds-at-once", default="auto")
    parser.add_argument("--limit", default="14GB", help="for each GPU")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--disk", help="a folder with 20 GB free")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    {"keep": keep_random_weights}.get(arguments.part, main)(arguments)

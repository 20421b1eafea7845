"""Do folds that share a base and take turns on the GPUs do more than one after the other?

    # The 30B's real shape, random weights, on two GPUs
    python tests/bench/two_gpus.py --out two_gpus.json --rows 64 16 --folds 1 2 3

A process loads the base and lends it, as in a run; each fold is a process that attaches it. Steps
have no optimizer. `s_per_row` is over the rows of all folds together, `peak_gib` of tensors by GPU:
the base once, and the peaks of all folds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.config import Config
from vqa_utils.planning.plan import memory_plan
from vqa_utils.presets import preset
from vqa_utils.setting_types import GIB
from vqa_utils.sharing.lent import LentBase
from vqa_utils.sharing.server import HOLDER, Server, receive_descriptors, send_descriptors
from vqa_utils.sharing.turns import Turns

KEY = "random weights"
WARM_UP = 3  # steps
BATCHES = 4  # different ones


def settings(args: argparse.Namespace, rows: int, folds: int) -> Config:
    """Return the settings of a case."""
    return replace(
        preset("safe"),
        data="-",
        max_memory=(args.limit,) * args.gpus,
        folds_at_once=folds,
        micro_batch=rows,
        accumulation=1,
        score_batch=rows,
        use_gradient_checkpointing=True,
    )


def lend_base(args: argparse.Namespace) -> None:
    """Load the base with random weights, and hand it to the driver."""
    from random_base import load_stock, make_processor

    from vqa_utils.model.lending.lender import lend

    config = settings(args, args.rows[0], 1)
    base, memories = lend(load_stock(config, make_processor(patch_px=16)), KEY)
    connection = Connection(args.descriptor)
    connection.send_bytes(base.to_json().encode())
    send_descriptors(connection, [memory.export() for memory in memories])


def run_fold(args: argparse.Namespace) -> None:
    """Train and score as one of `args.folds` folds; print what was measured."""
    import torch
    from random_base import make_processor, make_rows
    from speed import score_step, train_step
    from timing import on_device

    from vqa_utils.model.encoder import Encoder
    from vqa_utils.model.hand_over import end_turn
    from vqa_utils.model.lending.attach import attached, borrowed_bytes
    from vqa_utils.model.loading import add_lora, finish, loading_options

    (rows,), (folds,) = args.rows, args.folds
    config = settings(args, rows, folds)
    plan = memory_plan(config)
    start = time.perf_counter()
    base = attached(KEY, loading_options(config, plan), "random")
    model = add_lora(finish(base, config, plan), config, plan)
    attach_s = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        encoder = Encoder(make_processor(patch_px=16), Path(folder), config.image_side)
        made = make_rows(Path(folder), config.image_side, rows * BATCHES).to_dict("records")
        parts = [made[first : first + rows] for first in range(0, len(made), rows)]
        batches = {
            "train": [encoder.examples(part) for part in parts],
            "score": [encoder.questions(part) for part in parts],
        }

    def train(batch: Any) -> None:
        train_step(model, batch)
        end_turn()

    steps: dict[str, Callable[[Any], None]] = {
        "train": train,
        "score": lambda batch: score_step(model, batch),
    }
    gpus = range(len(plan.gpus))
    print(json.dumps({"attach_s": round(attach_s, 2)}), flush=True)
    for kind, step in steps.items():
        model.train(kind == "train")
        on_host = batches[kind]

        def go(count: int, step: Any = step, on_host: Any = on_host) -> None:
            for number in range(count):
                step(on_device(on_host[number % BATCHES]))
            for gpu in gpus:
                torch.cuda.synchronize(gpu)

        go(WARM_UP)
        for gpu in gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        meet(args.folder, f"{kind} warm", folds)
        start = time.perf_counter()
        go(args.steps)
        took = time.perf_counter() - start
        meet(args.folder, f"{kind} done", folds)
        own = [torch.cuda.max_memory_allocated(gpu) for gpu in gpus]
        reserved = [torch.cuda.memory_reserved(gpu) for gpu in gpus]
        found = {
            "kind": kind,
            "took_s": round(took, 3),
            "own_gib": [round(size / GIB, 2) for size in own],
            "reserved_gib": [round(size / GIB, 2) for size in reserved],
            "base_gib": [round(borrowed_bytes(gpu) / GIB, 2) for gpu in gpus],
        }
        print(json.dumps(found), flush=True)


def meet(folder: Path, name: str, folds: int) -> None:
    """Wait until all folds are here."""
    (folder / f"{name} {os.getpid()}").touch()
    while len(list(folder.glob(f"{name} *"))) < folds:
        time.sleep(0.005)


@contextmanager
def sampling_use(folder: Path) -> Iterator[dict[str, list[list[float]]]]:
    """Sample the GPUs' use, in percent, while all folds train, and while they score."""
    samples: dict[str, list[list[float]]] = {"train": [], "score": []}
    is_over = threading.Event()

    def sample() -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not is_over.wait(0.1):
            for kind, found in samples.items():
                has_begun = any(folder.glob(f"{kind} warm *"))
                if has_begun and not any(folder.glob(f"{kind} done *")):
                    answer = subprocess.run(command, capture_output=True, text=True, check=True)
                    found.append([float(line) for line in answer.stdout.split()])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join()


def run_case(args: argparse.Namespace, server: Server, rows: int, folds: int) -> dict[str, Any]:
    """Run folds at a time; return what they measured together."""
    plan = memory_plan(settings(args, rows, folds))
    with tempfile.TemporaryDirectory() as folder, sampling_use(Path(folder)) as use:
        processes = []
        for number in range(folds):
            command = [sys.executable, __file__, "--part", "fold", "--folder", folder]
            command += ["--rows", str(rows), "--folds", str(folds), "--steps", str(args.steps)]
            command += ["--limit", args.limit, "--gpus", str(args.gpus)]
            environment = os.environ | server.environment | {HOLDER: f"fold {number}"}
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
            processes.append(process)
        outputs = [process.communicate()[0].splitlines() for process in processes]
    if any(process.returncode for process in processes):
        return {"rows": rows, "folds": folds, "failed": True}
    found = [[json.loads(line) for line in lines[-3:]] for lines in outputs]
    result: dict[str, Any] = {
        "rows": rows,
        "folds": folds,
        "layers": [len(gpu.layers) for gpu in plan.gpus],
        "planned_gib": [round(gpu.total / GIB, 2) for gpu in plan.gpus],
        "attach_s": [fold[0]["attach_s"] for fold in found],
    }
    for part, kind in ((1, "train"), (2, "score")):
        measures = [fold[part] for fold in found]
        slowest = max(measure["took_s"] for measure in measures)
        peaks = []
        for gpu in range(args.gpus):
            own = sum(measure["own_gib"][gpu] for measure in measures)
            peaks.append(round(measures[0]["base_gib"][gpu] + own, 2))
        result[kind] = {
            "s_per_row": round(slowest / (args.steps * rows * folds), 5),
            "peak_gib": peaks,
            "reserved_gib": [measure["reserved_gib"] for measure in measures],
            "use_percent": mean_of(use[kind]),
        }
    return result


def mean_of(samples: Sequence[Sequence[float]]) -> list[float]:
    """Average samples by GPU."""
    return [round(sum(column) / len(column), 1) for column in zip(*samples, strict=True)]


def main(args: argparse.Namespace) -> None:
    """Load the base once, and run all cases around it."""
    ours, theirs = Pipe()
    command = [sys.executable, __file__, "--part", "lend", "--descriptor", str(theirs.fileno())]
    command += ["--rows", str(args.rows[0]), "--limit", args.limit, "--gpus", str(args.gpus)]
    start = time.perf_counter()
    lender = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT)
    theirs.close()
    base = LentBase.from_json(ours.recv_bytes().decode())
    descriptors = receive_descriptors(ours, len(base.blocks))
    lender.wait()
    names = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    results: list[dict[str, Any]] = [{"gpus": names[: args.gpus], "limit": args.limit}]
    results[0]["lent_s"] = round(time.perf_counter() - start, 1)
    print(json.dumps(results[0]), flush=True)
    turns = Turns(lambda *stall: print("stall", *stall, flush=True))
    with Server(turns, base, descriptors) as server:
        for rows in args.rows:
            for folds in args.folds:
                results.append(run_case(args, server, rows, folds))
                print(json.dumps(results[-1]), flush=True)
                args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 16], help="rows per pass")
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2], help="at a time")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--limit", default="36GB", help="for each GPU")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--descriptor", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    {"lend": lend_base, "fold": run_fold}.get(arguments.part, main)(arguments)

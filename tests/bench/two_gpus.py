"""Do folds that share a base and take turns on the GPUs do more than one after the other?

    # The 30B's real shape, random weights, on two GPUs
    python tests/bench/two_gpus.py --out two_gpus.json --rows 64 16 --folds 1 2 3
    # With the vision tower in each pass
    python tests/bench/two_gpus.py --out two_gpus.json --tower

A process loads the base and lends it, as in a run; each fold is a process that attaches it. Steps
have no optimizer. A fold alone scores with one batch at a time and, where the plan says so, with
several in flight. `s_per_row` is over the rows of all folds together. By GPU: `peaks_gib`
of tensors (the base once, and the peaks of all folds), `used_gib` as nvidia-smi has it, with CUDA's
own, and `use_percent`, the time with a kernel at work.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sampler import Sampler

from vqa_utils.artifacts.paths import ROOT
from vqa_utils.artifacts.stop import STEP
from vqa_utils.config import Config
from vqa_utils.planning.plan import memory_plan
from vqa_utils.presets import preset
from vqa_utils.setting_types import GIB
from vqa_utils.sharing.lent import LentBase
from vqa_utils.sharing.server import Server, receive_descriptors, send_descriptors
from vqa_utils.sharing.turns import Turns

KEY = "random weights"
KINDS = ("train", "score", "score in flight")
ROWS = "rows.json"
TEXT_TOKENS = 150  # of these rows
BATCHES = 3  # different ones; each is a warm-up too

Measured = dict[str, Any]


def settings(args: argparse.Namespace) -> Config:
    """Return the settings of the largest case: all cases have its plan."""
    rows = max(args.rows)
    return replace(
        preset("safe"),
        data="-",
        max_memory=(args.limit,) * args.gpus,
        folds_at_once=max(args.folds),
        micro_batch=rows,
        accumulation=1,
        score_batch=rows,
        use_gradient_checkpointing=True,
        cache_features=not args.tower,
        tta=args.orders,
        text_tokens=TEXT_TOKENS,
    )


def lend_base(args: argparse.Namespace) -> None:
    """Load the base with random weights, make pictures, and hand the base to the driver."""
    from random_base import encode_pictures, load_stock, make_processor, make_rows

    from vqa_utils.model.lending.lender import lend

    config = settings(args)
    processor = make_processor(patch_px=16)
    rows = make_rows(args.pictures, config.image_side, max(args.rows) * BATCHES)
    rows.to_json(args.pictures / ROWS)
    model = load_stock(config, processor)
    if config.caches_features:
        start = time.perf_counter()
        encode_pictures(model, config, processor, args.pictures, rows)
        print(f"{len(rows)} pictures encoded in {time.perf_counter() - start:.1f} s", flush=True)
    models = [model]
    del model
    base, memories = lend(models.pop(), KEY)
    connection = Connection(args.descriptor)
    connection.send_bytes(base.to_json().encode())
    send_descriptors(connection, [memory.export() for memory in memories])


def run_fold(args: argparse.Namespace) -> None:
    """Train and score in each case of the command line; print what was measured, a line a case."""
    import pandas as pd
    import torch
    from random_base import make_processor
    from speed import score_step, train_step
    from timing import on_device

    from vqa_utils.model import hand_over
    from vqa_utils.model.adapter import add_lora
    from vqa_utils.model.encoder import Encoder
    from vqa_utils.model.features.store import FeatureStore
    from vqa_utils.model.lending.attach import attached, borrowed_bytes
    from vqa_utils.model.loading import finish, loading_options
    from vqa_utils.scoring._in_flight import in_flight
    from vqa_utils.scoring._orders import encode_orders, shifts_of

    config = settings(args)
    plan = memory_plan(config)
    gpus = range(len(plan.gpus))
    start = time.perf_counter()
    store = FeatureStore(args.pictures / "features") if config.caches_features else None
    base = attached(KEY, loading_options(config, plan), "random", store)
    model = add_lora(finish(base, config, plan), config, plan)
    attach_s = round(time.perf_counter() - start, 2)
    turns = hand_over.TURNS

    def train(batches: Iterable[Any]) -> None:
        for batch in batches:
            train_step(model, on_device(batch))
            hand_over.end_turn()

    def score_one(batch: Any) -> None:
        score_step(model, on_device(batch))

    def score(batches: Iterable[Any]) -> None:
        for batch in batches:
            score_one(batch)

    def score_in_flight(batches: Iterable[Any]) -> None:
        for _ in in_flight(model, score_one, batches):
            pass

    def questions(rows: list[Any]) -> Any:
        shifts = shifts_of(args.orders)
        return encode_orders(encoder, rows, shifts) if args.orders > 1 else encoder.questions(rows)

    plain = Encoder(make_processor(patch_px=16), args.pictures, config.image_side)
    encoder = plain.for_model(model)
    made = pd.read_json(args.pictures / ROWS, dtype=str).to_dict("records")
    for rows, folds in itertools.product(args.rows, args.folds):
        meet(args.folder, f"{rows} {folds} begin", max(args.folds))
        if args.number >= folds:
            meet(args.folder, f"{rows} {folds} end", max(args.folds))
            continue
        # A fold alone has the GPUs for itself, as without a server
        hand_over.TURNS = turns if folds > 1 else None
        parts = [made[first : first + rows] for first in range(0, rows * BATCHES, rows)]
        found: dict[str, Any] = {"rows": rows, "folds": folds, "attach_s": attach_s}
        kinds = [("train", train, encoder.examples), ("score", score, questions)]
        if folds == 1 and model.batches_in_flight > 1:
            kinds.append(("score in flight", score_in_flight, questions))
        for kind, run, encode in kinds:
            model.train(kind == "train")
            batches = [encode(part) for part in parts]
            run(batches)  # warm-up
            for gpu in gpus:
                torch.cuda.synchronize(gpu)
                torch.cuda.reset_peak_memory_stats(gpu)
            case = f"{rows} {folds} {kind}"
            meet(args.folder, f"{case} warm", folds)
            start = time.perf_counter()
            run(itertools.islice(itertools.cycle(batches), args.steps))
            for gpu in gpus:
                torch.cuda.synchronize(gpu)
            took = time.perf_counter() - start
            meet(args.folder, f"{case} done", folds)
            own = [torch.cuda.max_memory_allocated(gpu) for gpu in gpus]
            found[kind] = {"took_s": took, "own_gib": [size / GIB for size in own]}
        found["base_gib"] = [borrowed_bytes(gpu) / GIB for gpu in gpus]
        print(json.dumps(found), flush=True)
        meet(args.folder, f"{rows} {folds} end", max(args.folds))


def meet(folder: Path, name: str, folds: int) -> None:
    """Wait until all folds are here."""
    (folder / f"{name} {os.getpid()}").touch()
    while len(list(folder.glob(f"{name} *"))) < folds:
        time.sleep(0.005)


def together(found: list[dict[str, Any]], sampler: Sampler, args: argparse.Namespace) -> Measured:
    """Put together what the folds of one case measured."""
    rows, folds = found[0]["rows"], found[0]["folds"]
    result: Measured = {"rows": rows, "folds": folds}
    result["attach_s"] = [fold["attach_s"] for fold in found]
    for kind in KINDS:
        if kind not in found[0]:
            continue
        slowest = max(fold[kind]["took_s"] for fold in found)
        peaks = []
        for gpu in range(args.gpus):
            own = sum(fold[kind]["own_gib"][gpu] for fold in found)
            peaks.append(round(found[0]["base_gib"][gpu] + own, 2))
        result[kind] = {
            "s_per_row": round(slowest / (args.steps * rows * folds), 5),
            "peaks_gib": peaks,
            **sampler.of(f"{rows} {folds} {kind}", args.gpus),
        }
    return result


def run_cases(args: argparse.Namespace, server: Server) -> Iterator[Measured]:
    """Start as many folds as the largest case has; yield the measures of each case."""
    with tempfile.TemporaryDirectory() as folder:
        sampler = Sampler(Path(folder))
        sampler.start()
        processes = []
        for number in range(max(args.folds)):
            command = [sys.executable, __file__, "--part", "fold", *arguments_of(args)]
            command += ["--folder", folder, "--number", str(number)]
            environment = os.environ | server.environment | {STEP: f"fold {number}"}
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
            processes.append(process)
        for _, folds in itertools.product(args.rows, args.folds):
            lines = [process.stdout.readline() for process in processes[:folds]]
            if not all(lines):
                raise SystemExit("a fold has ended: its error stands above")
            yield together([json.loads(line) for line in lines], sampler, args)
        for process in processes:
            process.wait()


def arguments_of(args: argparse.Namespace) -> list[str]:
    """Return the arguments that all parts share."""
    words = ["--limit", args.limit, "--gpus", str(args.gpus), "--steps", str(args.steps)]
    words += ["--rows", *map(str, args.rows), "--folds", *map(str, args.folds)]
    words += ["--orders", str(args.orders), "--pictures", str(args.pictures)]
    return [*words, "--tower"] if args.tower else words


def main(args: argparse.Namespace) -> None:
    """Load the base once, and run all cases around it, with a folder for pictures."""
    with tempfile.TemporaryDirectory() as pictures:
        args.pictures = Path(pictures)
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Run all cases around one base."""
    ours, theirs = Pipe()
    command = [sys.executable, __file__, "--part", "lend", *arguments_of(args)]
    command += ["--descriptor", str(theirs.fileno())]
    start = time.perf_counter()
    lender = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT)
    theirs.close()
    base = LentBase.from_json(ours.recv_bytes().decode())
    descriptors = receive_descriptors(ours, len(base.blocks))
    lender.wait()
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    plan = memory_plan(settings(args))
    results: list[Measured] = [
        {
            "gpus": names[: args.gpus],
            "limit": args.limit,
            "lent_s": round(time.perf_counter() - start, 1),
            "layers": [len(gpu.layers) for gpu in plan.gpus],
            "folds": max(args.folds),
            "rows": max(args.rows),
            "planned_gib": [round(gpu.total / GIB, 2) for gpu in plan.gpus],
            "gives_back": plan.gives_back,
            "experts_at_once": plan.experts_at_once,
            "tower": args.tower,
        }
    ]
    print(json.dumps(results[0]), flush=True)
    turns = Turns(lambda *stall: print("stall", *stall, flush=True))
    with Server(turns) as server:
        server.lend(base, descriptors)
        for result in run_cases(args, server):
            results.append(result)
            print(json.dumps(result), flush=True)
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
    parser.add_argument("--tower", action="store_true", help="run the vision tower in each pass")
    parser.add_argument("--orders", type=int, default=1, help="option orders that are scored")
    parser.add_argument("--pictures", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--descriptor", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    {"lend": lend_base, "fold": run_fold}.get(arguments.part, main)(arguments)

"""How fast are training and scoring? This project against transformers' own ways, in one run.

    # The 30B's real shape, on a GPU capped at two T4's limits
    python tests/bench/speed.py --out speed.json
    # The demo's base on a CPU: shows that the code works, times nothing
    python tests/bench/speed.py --out speed.json --tiny
    # One case with several settings
    python tests/bench/speed.py --out grows.json --cases ours:16 --changes "" image_side=512

Every variant has the same random NF4 weights, LoRA, checkpointing, fp16 autocast and batches (image
384), and makes logits at the answer alone:

    usual   transformers' eager loop over experts (stock.py)
    stock   transformers' default experts function (stock.py); both dequantise a layer at a time
    peer    another project's kernels in that model, with its fusions around them (peer.py); left
            out if it cannot run
    ours    the model of `load_base` and `add_lora`

The least time of each is in floor.py.
"""

import argparse
import contextlib
import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import peer
import torch
from floor import Measured, add_floors
from random_base import encode_pictures, make_rows
from timing import GPU, measured, rates, rounded
from transformers import BatchFeature
from variants import Adapted, computing, prepared

from vqa_utils.config import Config, parse_settings
from vqa_utils.model.encoder import Encoder, Row
from vqa_utils.ops import expert_slots
from vqa_utils.scoring._orders import encode_orders, shifts_of
from vqa_utils.scoring.options import autocast, last_logits
from vqa_utils.training._loss import answer_loss

# Rows per batch. In training, 56 fill the memory with `stock`; the plan of `ours` allows 32
ROWS = {
    "usual": (1,),
    "stock": (1, 16, 48, 56, 64, 128),
    "peer": (1, 16),
    "ours": (1, 4, 16, 32, 64, 128),
}
MOST_TRAINED = 56
SCORED = (1, 4, 16, 64, 128)
SCORED_IN_ORDERS = (1, 4, 16)  # in two and four option orders too
LOSS_SCALE = 256


class Case(NamedTuple):
    """A variant with its rows per batch."""

    variant: str
    rows: int

    def steps(self) -> int:
        """Return how many steps are timed, if the command line does not say."""
        if self.variant == "usual":
            return 3
        return 5 if self.rows == 1 else 10


@contextlib.contextmanager
def counting_padding(found: Measured) -> Iterator[None]:
    """Count how our experts' tokens are cut into chunks while this is open.

    Adds `padded`, expert slots per routed token, and `chunks`, the chunks of a layer.
    """
    routed_tokens: list[int] = []  # of each layer
    chunks: list[list[tuple[int, int]]] = []  # of each layer: experts, slots of each
    split = expert_slots.split

    def counted(loads: Sequence[int], *args: int) -> list[tuple[int, int]]:
        sizes = split(loads, *args)
        routed_tokens.append(int(sum(loads)))
        chunks.append(sizes)
        return sizes

    expert_slots.split = counted
    try:
        yield
    finally:
        expert_slots.split = split
    if chunks:
        slots = 0
        for sizes in chunks:
            slots += sum(experts * each for experts, each in sizes)
        found["padded"] = rounded(slots / sum(routed_tokens))
        found["chunks"] = rounded(sum(len(sizes) for sizes in chunks) / len(chunks))


def train_step(model: torch.nn.Module, batch: BatchFeature) -> None:
    """Go forward and backward, without the optimizer."""
    inputs = dict(batch)
    labels = inputs.pop("labels")
    with autocast(model.device, True):
        loss = answer_loss(model(**inputs), labels)
    (loss * LOSS_SCALE).backward()
    for parameter in trained(model):
        parameter.grad = None


@functools.lru_cache(maxsize=1)
def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """List the parameters that learn; kept, since going through all takes time in each step."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def score_step(model: torch.nn.Module, batch: BatchFeature) -> None:
    """Score the rows of a batch."""
    with torch.inference_mode():
        last_logits(model, batch, True)


class Mode(NamedTuple):
    """A kind of step: how rows become a batch, and what is timed."""

    name: str
    encode: Callable[[Sequence[Row]], BatchFeature]
    step: Callable[[torch.nn.Module, BatchFeature], None]


def modes_of(case: Case, encoder: Encoder) -> list[Mode]:
    """List the kinds of steps that a case is timed in."""
    modes = []
    if case.rows <= MOST_TRAINED:
        modes.append(Mode("train", encoder.examples, train_step))
    if case.rows in SCORED:
        modes.append(Mode("score", encoder.questions, score_step))
    if case.variant == "ours" and case.rows in SCORED_IN_ORDERS:
        for orders in (2, 4):
            encode = functools.partial(encode_orders, encoder, shifts=shifts_of(orders))
            modes.append(Mode(f"score_{orders}", encode, score_step))
    return modes


class Batches:
    """Batches of a case's rows, made once for all variants."""

    def __init__(self):
        self.known: dict[tuple[Any, ...], list[BatchFeature]] = {}

    def of(
        self, mode: Mode, encoder: Encoder, rows: Sequence[Row], size: int
    ) -> list[BatchFeature]:
        """Return the rows in batches of `size`."""
        key = (mode.name, size, len(rows), encoder.image_side)
        if key not in self.known:
            batches = []
            for start in range(0, len(rows), size):
                batches.append(mode.encode(rows[start : start + size]))
            self.known[key] = batches
        return self.known[key]


def measure_case(
    model: torch.nn.Module, case: Case, encoder: Encoder, rows: Sequence[Row], known: Batches
) -> Measured:
    """Time a case in each mode; `tokens` has each mode's tokens per row in the last batch."""
    tokens: dict[str, int] = {}
    found: Measured = {"tokens": tokens}
    with computing(case.variant, model):
        for mode in modes_of(case, encoder):
            model.train(mode.name == "train")
            batches = known.of(mode, encoder, rows, case.rows)
            tokens[mode.name] = batches[-1]["input_ids"].shape[1]
            padding: Measured = {}
            with counting_padding(padding):
                measures = measured(functools.partial(mode.step, model), batches, case.rows)
            found[mode.name] = measures | padding
    return found


def chosen_cases(named: Sequence[str]) -> list[Case]:
    """Read cases such as `stock:16,56` or `ours`, in the order of ROWS."""
    rows_of: dict[str, Sequence[int]] = {}
    for text in named:
        variant, _, rows = text.partition(":")
        if variant not in ROWS:
            raise SystemExit(f"--cases: expected {', '.join(ROWS)}, found {variant}")
        rows_of[variant] = [int(number) for number in rows.split(",")] if rows else ROWS[variant]
    cases = []
    for variant in ROWS:
        for rows in rows_of.get(variant, ()):
            cases.append(Case(variant, rows))
    return cases


def settings_of(case: Case, change: str, usual_config: Config) -> Config:
    """Apply a change such as `lora_r=16,lora_alpha=32`, and plan for passes of the case's size."""
    config = replace(usual_config, **parse_settings(part for part in change.split(",") if part))
    if config.effective_batch < case.rows <= MOST_TRAINED:
        # A larger pass has room for fewer layers without checkpointing
        config = replace(config, micro_batch=case.rows, accumulation=1)
    return config


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--steps", type=int, help="timed steps of each case, in place of their own numbers"
    )
    parser.add_argument(
        "--cases",
        nargs="*",
        default=list(ROWS),
        metavar="VARIANT[:ROWS,...]",
        help="with so many rows per batch",
    )
    parser.add_argument(
        "--features", action="store_true", help="of pictures, encoded before; of `ours` alone"
    )
    parser.add_argument(
        "--changes",
        nargs="*",
        default=[""],
        metavar="NAME=VALUE,...",
        help="the cases with these settings",
    )
    return parser.parse_args()


def main() -> None:
    """Time the cases one after the other and write what was measured after each."""
    args = parse_arguments()
    cases = chosen_cases(args.cases)
    without_peer = "the tiny base's experts do not fit its blocks" if args.tiny else peer.missing()
    if without_peer:
        print(f"peer: left out: {without_peer}", flush=True)
        cases = [case for case in cases if case.variant != "peer"]
    rate = rates() if GPU and not args.tiny else {}
    machine = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name() if GPU else ""}
    results: list[Measured] = [{**machine, **rate}]
    base, usual_config, processor = prepared(args.tiny)
    # Each step has rows of its own: as many as timed are warm-up, and one is profiled
    needed = {case: case.rows * (2 * (args.steps or case.steps()) + 1) for case in cases}
    known = Batches()
    with tempfile.TemporaryDirectory() as folder:

        @functools.cache
        def pictures(side: int) -> list[Row]:
            return make_rows(Path(folder), side, max(needed.values())).to_dict("records")

        if args.features:
            shown = pd.DataFrame(pictures(usual_config.image_side))
            encode_pictures(base, usual_config, processor, Path(folder), shown)
            usual_config = replace(usual_config, cache_features=True)
        adapted = Adapted(base, usual_config)
        for case, change in itertools.product(cases, args.changes):
            config = settings_of(case, change, usual_config)
            model = adapted.renew(config, ours=case.variant == "ours")
            encoder = Encoder(processor, Path(folder), config.image_side).for_model(model)
            rows = pictures(config.image_side)[: needed[case]]
            result: Measured = {"variant": case.variant, "rows": case.rows}
            if change:
                result["change"] = change
            try:
                result |= measure_case(model, case, encoder, rows, known)
            except torch.OutOfMemoryError:
                result |= {"tokens": {}, "out_of_memory": True}
            add_floors(result, config, rate)
            if case.variant == "peer":
                result["calls"] = peer.calls()
            results.append(result)
            print(json.dumps(result), flush=True)
            args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

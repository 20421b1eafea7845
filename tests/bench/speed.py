"""How fast is a training step, and how fast is scoring? This project against transformers' own ways, in one run.

    python tests/bench/speed.py --out speed.json              # the 30B's real shape, on a GPU capped at two T4's limits
    python tests/bench/speed.py --out speed.json --tiny       # the demo's base on a CPU: that the code works, no timing
    python tests/bench/speed.py --out grows.json --cases ours:16 --changes "" image_side=512 lora_r=16,lora_alpha=32

Every variant has the same random NF4 weights, LoRA, checkpointing, fp16 autocast and batches (image 384), and makes logits
at the answer alone. `usual`: transformers' eager loop over experts; `stock`: its default experts function. Both dequantise
a layer at a time (stock.py). `ours`: what `load_base` and `add_lora` make. `peer`: another project's kernels (peer.py) and its fusions
around them in the model of `usual` and `stock`; left out where it cannot run.

The floor counts, at rates measured in the same run: the operations of all products forward and of their input gradients
backward (nothing computed twice), and each packed weight read once a pass.
"""

import argparse
import contextlib
import functools
import gc
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import peer
import torch
from peft import PeftModel
from real_shape import load_stock, make_processor, make_rows
from stock import stock, stock_lora, usual
from timing import GPU, measured, rates
from transformers import AutoModelForImageTextToText, BatchFeature, ProcessorMixin

from vqa_utils.config import Config, parse_settings
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.loading import (
    add_lora,
    finish,
    load_processor,
    loading_options,
    model_path,
)
from vqa_utils.model.nf4.experts import NF4Experts
from vqa_utils.ops import expert_slots
from vqa_utils.planning.memory import weights_by_module
from vqa_utils.planning.plan import memory_plan
from vqa_utils.planning.shapes import published_config, read_shape
from vqa_utils.presets import preset
from vqa_utils.scoring._orders import encode_orders, shifts_of
from vqa_utils.scoring.options import autocast, last_logits
from vqa_utils.setting_types import size_in_bytes
from vqa_utils.training._loss import answer_loss

# Rows a batch. In training 56 fill the memory with `stock`, and 32 are what the plan of `ours` allows
ROWS = {
    "usual": (1,),
    "stock": (1, 16, 48, 56, 64, 128),
    "peer": (1, 16),
    "ours": (1, 4, 16, 32, 64, 128),
}
MOST_TRAINED, SCORED, ORDERED = (
    56,
    (1, 4, 16, 64, 128),
    (1, 4, 16),
)  # the last in several option orders too
FORWARDS = {"usual": usual, "stock": stock, "peer": peer.experts, "ours": NF4Experts.forward}


@contextlib.contextmanager
def computing(variant: str, model: torch.nn.Module) -> Iterator[None]:
    """While a variant is timed."""
    NF4Experts.forward = FORWARDS[variant]
    try:
        with peer.fused(model) if variant == "peer" else contextlib.nullcontext():
            yield
    finally:
        NF4Experts.forward = FORWARDS["ours"]


@contextlib.contextmanager
def counting(found: dict[str, object]) -> Iterator[None]:
    """Of our experts, the rows computed for each that is needed, and the chunks of a layer."""
    cuts, split = [], expert_slots.split

    def counted(loads: Sequence[int], *args: int) -> list[tuple[int, int]]:
        cuts.append((sum(loads), split(loads, *args)))
        return cuts[-1][1]

    expert_slots.split = counted
    try:
        yield
    finally:
        expert_slots.split = split
    if cuts:
        rows = sum(experts * each for _, sizes in cuts for experts, each in sizes)
        found["padded"] = float(f"{rows / sum(int(needed) for needed, _ in cuts):.4g}")
        found["chunks"] = float(f"{sum(len(sizes) for _, sizes in cuts) / len(cuts):.4g}")


def train_step(model: torch.nn.Module, batch: dict) -> None:
    inputs = dict(batch)
    labels = inputs.pop("labels")
    with autocast(model.device, True):
        loss = answer_loss(model(**inputs), labels)
    (loss * 256).backward()
    for parameter in trained(model):
        parameter.grad = None


@functools.lru_cache(maxsize=1)
def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """What an optimizer would hold."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def score(model: torch.nn.Module, batch: BatchFeature) -> None:
    with torch.inference_mode():
        last_logits(model, batch, True)


def floor(
    config: Config, tokens: int, rows: int, rate: dict[str, float], *, training: bool
) -> float:
    """Seconds a row: operations at the card's rate, and each packed weight read once a pass."""
    shape = read_shape(published_config(config.model))
    patches = config.image_side**2 // shape.patch_px**2
    text = vision = 0
    for name, size in shape.parameters.items():
        count = torch.Size(size).numel()
        if ".experts." in name:
            text += count // size[0] * shape.experts_per_token
        elif name.endswith("proj.weight") and "language_model" in name:
            text += count
        elif name.endswith("weight") and "visual.blocks" in name:
            vision += count
    passes = 2 if training else 1
    operations = 2 * (passes * text * tokens + vision * patches)
    packed = sum(sum(groups.values()) for groups in weights_by_module(shape, config).values())
    return operations / rate["tflops"] / 1e12 + passes * packed / rows / rate["tbps"] / 1e12


def prepared(tiny: bool) -> tuple[torch.nn.Module, Config, ProcessorMixin]:
    """The stock base, its settings and its processor."""
    if tiny:
        config = replace(preset("demo"), lora_dropout=0.05, micro_batch=1)
        base = AutoModelForImageTextToText.from_pretrained(
            model_path(config), **loading_options(config, None)
        )
        return base, config, load_processor(config)
    config = preset("safe")
    config = replace(
        config, max_memory=(f"{sum(map(size_in_bytes, config.max_memory)) / 1e9:g}GB",), data="-"
    )
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, size_in_bytes(config.max_memory[0]) / total)
    )
    processor = make_processor(16)
    return load_stock(config, processor), config, processor


def adapted(
    model: torch.nn.Module, config: Config, *, ours: bool, finished: bool
) -> torch.nn.Module:
    """The model with new LoRA layers in place of those that it may have; what is `finished` is ours and stays it."""
    base = model.unload() if isinstance(model, PeftModel) else model
    if not finished:
        for module in (
            base.modules()
        ):  # what makes inputs need a gradient: asked for twice, it is taken off once
            module._forward_hooks.clear()
    gc.collect()
    if not ours:
        return stock_lora(base, config)
    plan = memory_plan(config)
    return add_lora(base if finished else finish(base, config, plan), config, plan)


def case(
    model: torch.nn.Module, variant: str, encoder: Encoder, rows: list, size: int, known: dict
) -> tuple[dict, dict]:
    """What training and scoring `size` rows at once take, and the tokens of the last; batches that were made are `known`."""
    modes = [("train", encoder.examples, train_step)] if size <= MOST_TRAINED else []
    modes += [("score", encoder.questions, score)] if size in SCORED else []
    if variant == "ours" and size in ORDERED:  # with two and four option orders
        modes += [
            (
                f"score_{orders}",
                functools.partial(encode_orders, encoder, shifts=shifts_of(orders)),
                score,
            )
            for orders in (2, 4)
        ]
    found, tokens = {}, {}
    with computing(variant, model):
        for mode, encode, step in modes:
            model.train(mode == "train")
            named = mode, size, len(rows), encoder.image_side
            if named not in known:
                known[named] = [
                    encode(rows[start : start + size]) for start in range(0, len(rows), size)
                ]
            batches = known[named]
            tokens[mode] = batches[-1]["input_ids"].shape[1]
            counted: dict[str, object] = {}
            with counting(counted):
                found[mode] = measured(functools.partial(step, model), batches, size)
            found[mode] |= counted
    return found, tokens


def chosen_cases(named: Sequence[str]) -> list[tuple[str, int]]:
    """Variants with rows a batch, of `stock:16,56` or `ours`; in the order of `ROWS`, as what is ours is never stock again."""
    wanted = {variant: rows for variant, _, rows in (case.partition(":") for case in named)}
    if unknown := wanted.keys() - ROWS.keys():
        raise SystemExit(f"--cases: expected {', '.join(ROWS)}, found {', '.join(unknown)}")
    return [
        (variant, int(rows))
        for variant, usual_rows in ROWS.items()
        if variant in wanted
        for rows in (wanted[variant].split(",") if wanted[variant] else usual_rows)
    ]


def steps_of(variant: str, rows: int) -> int:
    """How many steps of a case are timed."""
    if variant == "usual":
        return 3
    return 5 if rows == 1 else 10


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
        help="with so many rows a batch",
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
    without_peer = "the tiny base's experts do not fit its blocks" if args.tiny else peer.missing()
    if without_peer:
        print(f"peer: left out: {without_peer}", flush=True)
    rate = rates() if GPU and not args.tiny else {}
    results: list[dict] = [
        {"torch": torch.__version__, "gpu": torch.cuda.get_device_name() if GPU else "", **rate}
    ]
    model, usual_config, processor = prepared(args.tiny)
    ready_for = (False, usual_config)
    chosen = [case for case in chosen_cases(args.cases) if case[0] != "peer" or not without_peer]
    known: dict[tuple, list[BatchFeature]] = {}
    with tempfile.TemporaryDirectory() as folder:
        needed = {
            case: case[1] * (2 * (args.steps or steps_of(*case)) + 1) for case in chosen
        }  # rows: each step has its own
        pictures = functools.cache(
            lambda side: make_rows(Path(folder), side, max(needed.values())).to_dict("records")
        )
        for (variant, size), change in itertools.product(
            chosen, args.changes
        ):  # once it is ours, no variant is stock
            config, ours = (
                replace(usual_config, **parse_settings(filter(None, change.split(",")))),
                variant == "ours",
            )
            if (
                config.effective_batch < size <= MOST_TRAINED
            ):  # a larger pass has room for fewer layers that are kept
                config = replace(config, micro_batch=size, accumulation=1)
            if not isinstance(model, PeftModel) or ready_for != (ours, config):
                model = adapted(model, config, ours=ours, finished=ready_for[0])
                ready_for = (ours, config)
            encoder = Encoder(processor, Path(folder), config.image_side)
            rows = pictures(config.image_side)[: needed[variant, size]]
            try:
                found, tokens = case(model, variant, encoder, rows, size, known)
            except torch.OutOfMemoryError:
                found, tokens = {"out_of_memory": True}, {}
            for mode in {"train", "score"} & set(found) if rate else ():
                share = floor(config, tokens[mode], size, rate, training=mode == "train")
                found[mode]["floor_s"] = float(f"{share:.4g}")
            if variant == "peer":
                found["calls"] = peer.calls()
            named = {"variant": variant, "rows": size, **({"change": change} if change else {})}
            results.append({**named, "tokens": tokens, **found})
            print(json.dumps(results[-1]), flush=True)
            args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

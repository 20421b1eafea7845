"""Do the presets fit, and how fast are they? Published shapes with random weights tell.

    python tests/bench/real_shape.py --out results.json safe single_gpu
    python tests/bench/real_shape.py --out results.json safe:max_memory=14GB,offload_experts=true
    python tests/bench/real_shape.py --out results.json --long-row 1700 \
        safe:text_tokens=156,longest_text=1900,longest_test=1900

Random weights are quantised parameter by parameter on the GPU, through the loader of a checkpoint.
If a preset names two GPUs and one is there, that one is capped at the sum of their limits. Each
case trains 32 rows and scores 64, with a `second_look` its share of them once more; with
--long-row, one of each has a question so many words longer.
"""

import argparse
import gc
import json
import math
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from random_base import encode_pictures, load_stock, make_processor, make_rows
from recount import with_text
from timing import GIB, GPU, idle
from transformers import PreTrainedModel, Qwen3VLProcessor

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.config import Config, parse_settings
from vqa_utils.metrics import option_matrix
from vqa_utils.model.adapter import add_lora
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.loading import finish
from vqa_utils.model.loading_check import loaded_weights
from vqa_utils.planning.plan import Plan, make_plan, memory_plan, resolve_batches
from vqa_utils.planning.shapes import published_config, read_shape
from vqa_utils.presets import preset
from vqa_utils.scoring.fold import _second_look
from vqa_utils.scoring.options import ScoringSettings, score_options
from vqa_utils.setting_types import size_in_bytes
from vqa_utils.training.fold import train_fold

TRAIN_ROWS = 32  # two steps of the largest batch, so that the optimizer's state is in the peak
SCORE_ROWS = 64
OPTION_TOKENS = 18  # of these rows: each further option order adds them

Case = tuple[str, Config]  # its name on the command line, and its settings


def load(
    config: Config, processor: Qwen3VLProcessor, folder: Path, rows: pd.DataFrame
) -> PreTrainedModel:
    """Load as `load_base` does, without a checkpoint on a disk."""
    base = load_stock(config, processor)
    if config.caches_features:
        encode_pictures(base, config, processor, folder, rows)
    return finish(base, config, memory_plan(config))


def picture_side(config: Config) -> int:
    """Return the side of the largest square picture that is shown as it is, in px."""
    shape = read_shape(published_config(config.model))
    factor_px = math.isqrt(shape.pixels_per_token)
    return config.image_side // factor_px * factor_px


def original_side(config: Config) -> int:
    """Return the side of pictures whose pixels are all shown somewhere, in px."""
    most_crops = max(1, config.crops, config.look_crops)
    return max(picture_side(config), config.look_side) * most_crops


def run_case(
    name: str,
    base: PreTrainedModel,
    processor: Qwen3VLProcessor,
    config: Config,
    folder: Path,
    rows: pd.DataFrame,
    long_row: int,
) -> dict[str, Any]:
    """Train and score; return predicted and measured peaks in GiB, and seconds per row."""
    side = picture_side(config)
    shape = read_shape(published_config(config.model))
    rows = rows.copy()
    rows.loc[[0, SCORE_ROWS - 1], "question"] += " circle" * long_row
    train, held_out = rows.head(TRAIN_ROWS), rows.tail(config.score_batch)
    encoder = Encoder(processor, folder, config.image_side, config.prompt).for_model(base)
    image_tokens = config.prompt.images * side**2 // shape.pixels_per_token
    tokens = encoder.examples(train.tail(TRAIN_ROWS - 1).to_dict("records"))["input_ids"].shape[1]
    text_tokens = tokens - image_tokens - config.prompt.image_marks
    limits = [size_in_bytes(size) for size in config.max_memory]
    plan = make_plan(config, shape, limits)
    plan = with_text(plan, config, shape, text_tokens, OPTION_TOKENS)

    model = add_lora(base, config, memory_plan(config))
    paths = FoldPaths(folder / name)
    meta = train_fold(model, config, encoder, train, held_out, paths)
    log = pd.read_csv(paths.train_log)
    gpus = range(len(limits)) if GPU else range(0)
    trained = [torch.cuda.max_memory_allocated(gpu) for gpu in gpus]
    reserved = [torch.cuda.max_memory_reserved(gpu) for gpu in gpus]
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)

    timer = Timer()
    probs = option_matrix(
        score_options(model.eval(), encoder, rows, ScoringSettings.of_run(config))
    )
    score_s = timer.seconds()
    scored = [torch.cuda.max_memory_allocated(gpu) for gpu in gpus]
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)

    unsure = rows.head(round(config.second_look * SCORE_ROWS))
    timer = Timer()
    if len(unsure):
        _second_look(model, encoder, {"oof": unsure}, config)
    look_s = timer.seconds()
    looked = [torch.cuda.max_memory_allocated(gpu) for gpu in gpus]
    model.unload()
    return {
        "case": name,
        "gpus": len(limits),
        "image": side,
        "tokens": tokens,
        "long_row": long_row,
        "micro_batch": config.micro_batch,
        "score_batch": config.score_batch,
        "lora_r": config.lora_r,
        **described(plan),
        "limit_gib": gib(limits),
        "trained_gib": gib(trained),
        "before_evaluation_gib": float(log["memory_gib"].iloc[0]),
        "scored_gib": gib(scored),
        "looked_gib": gib(looked) if len(unsure) else [],
        "planned_scoring_gib": gib(planned_scoring(plan)),
        "reserved_gib": gib(reserved),
        "context_gib": context_gib(),
        "train_s_per_row": round(log["seconds_per_step"].sum() / TRAIN_ROWS, 3),
        "score_s_per_row": round(score_s / SCORE_ROWS, 3),
        "look_s_per_row": round(look_s / max(1, len(unsure)), 3),
        "losses": log["loss"].round(3).tolist(),
        "grad_norms": log["grad_norm"].tolist(),
        "skipped": meta["skipped_steps"],
        "finite": bool(np.isfinite(probs).all() and np.isfinite(log["loss"]).all()),
    }


def planned_scoring(plan: Plan) -> list[int]:
    """Return the bytes of scoring on each GPU, with what a second batch in flight holds."""
    sizes = [gpu.peaks["scoring"] for gpu in plan.gpus]
    if plan.batches_in_flight > 1:
        sizes[0] += plan.gpus[0].held_in_scoring
    return sizes


def described(plan: Plan) -> dict[str, Any]:
    """Return the plan's placement and sizes; phases and groups are those of the first GPU."""
    first = plan.gpus[0]
    layers = []
    for gpu in plan.gpus:
        layers.append(sum(".layers." in module for module in gpu.modules))
    return {
        "predicted_gib": gib(gpu.total for gpu in plan.gpus),
        "free_gib": gib(gpu.left for gpu in plan.gpus),
        "offloaded_layers": len(plan.offloaded_layers),
        "uncheckpointed_layers": [len(gpu.uncheckpointed_layers) for gpu in plan.gpus],
        "layers": layers,
        "peaks_gib": {phase: round(size / GIB, 2) for phase, size in first.peaks.items()},
        "use": {
            group: round(size / GIB, 3) for group, size in (first.weights | first.training).items()
        },
    }


def gib(sizes: Iterable[int]) -> list[float]:
    """Turn bytes into GiB."""
    return [round(size / GIB, 2) for size in sizes]


def context_gib() -> float:
    """Return the memory of CUDA itself on the first GPU, beside the allocator's."""
    if not GPU:
        return 0.0
    free, total = torch.cuda.mem_get_info(0)
    return round((total - free - torch.cuda.memory_reserved(0)) / GIB, 2)


class Timer:
    """Wall time between its making and `seconds`, with the GPUs idle at both ends."""

    def __init__(self):
        self.start = self._when_idle()

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return self._when_idle() - self.start

    def _when_idle(self) -> float:
        idle()
        return time.perf_counter()


def settings(case: str) -> Case:
    """Resolve `safe` or `safe:image_side=512,micro_batch=4`, a preset with changes.

    With fewer GPUs than it names, one gets the sum of their limits.
    """
    name, _, changes = case.partition(":")
    # A comma ends a change here, so a list of sizes is written with +
    given = [change.replace("+", ",") for change in changes.split(",") if change]
    config = preset(name, **parse_settings(given))
    if torch.cuda.device_count() < len(config.max_memory):
        total = sum(size_in_bytes(size) for size in config.max_memory)
        config = replace(config, max_memory=(f"{total / 1e9:g}GB",))
    limits = [size_in_bytes(size) for size in config.max_memory]
    config = resolve_batches(config, read_shape(published_config(config.model)), limits)
    return case, replace(config, data="-", num_workers=0, epochs=1)


def groups(cases: Sequence[str]) -> Iterable[list[Case]]:
    """Group the cases that can share a loaded base, in the order of their first."""
    by_base: dict[tuple[Any, ...], list[Case]] = {}
    for case in map(settings, cases):
        config = case[1]
        plan = memory_plan(config)
        cut = tuple(plan.device_map.items()) if plan else ()
        base = config.model, config.max_memory, config.offload_experts, cut, config.image_side
        if config.caches_features:  # these pictures are stored
            base += config.crops, config.look_side, config.look_crops
        by_base.setdefault(base, []).append(case)
    return by_base.values()


def cap_gpus(config: Config) -> None:
    """Cap each GPU at its limit, and measure its peak from here on."""
    for gpu, size in enumerate(config.max_memory if GPU else ()):
        total = torch.cuda.get_device_properties(gpu).total_memory
        share = min(1.0, size_in_bytes(size) / total)
        torch.cuda.set_per_process_memory_fraction(share, gpu)
        torch.cuda.reset_peak_memory_stats(gpu)


def main() -> None:
    """Run the cases of the command line and write what was measured after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="+", metavar="PRESET[:NAME=VALUE,...]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--long-row", type=int, default=0, metavar="WORDS")
    args = parser.parse_args()
    results = []
    for cases in groups(args.cases):
        _, config = cases[0]
        cap_gpus(config)
        processor = make_processor(read_shape(published_config(config.model)).patch_px)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            side = max(original_side(case) for _, case in cases)
            rows = make_rows(folder, side, SCORE_ROWS)
            timer = Timer()
            base = load(config, processor, folder, rows)
            loading = {
                "load_s": round(timer.seconds(), 1),
                "load_peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
                "weights_gib": round(torch.cuda.memory_allocated() / GIB, 2),
            }
            print(loaded_weights(base, config), flush=True)
            for name, case in cases:
                result = run_case(name, base, processor, case, folder, rows, args.long_row)
                results.append({**loading, **result})
                print(json.dumps(results[-1]), flush=True)
                args.out.write_text(json.dumps(results, indent=1))
        del base
        gc.collect()  # a model's hooks make cycles
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

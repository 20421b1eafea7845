"""Do the presets fit, and how fast are they? The published shapes with random weights, through the project's own code.

    python tests/bench/real_shape.py --out results.json safe balanced performance low_memory single_gpu dense_8b

Random weights are quantised parameter by parameter on the GPU through the loader that a checkpoint takes. Where a preset
names two GPUs and one is there, that one is capped at the sum of their limits. Each case trains 32 rows and scores 64.
"""

import argparse
import gc
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from timing import GIB
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.config import Config, parse_settings
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.loading import (
    add_lora,
    finish,
    load_processor,
    loading_options,
)
from vqa_utils.model.loading_check import loaded_weights
from vqa_utils.model.nf4.quantizer import offloading
from vqa_utils.planning.plan import make_plan, memory_plan, resolve_batches, with_text
from vqa_utils.planning.shapes import published_config, read_shape
from vqa_utils.presets import preset
from vqa_utils.scoring.options import score_options
from vqa_utils.setting_types import size_in_bytes
from vqa_utils.tiny_base._architecture import SPECIAL
from vqa_utils.training.fold import train_fold

TRAIN_ROWS, SCORE_ROWS, TEXT_WORDS = (
    32,
    64,
    60,
)  # two steps, so that the optimizer is there at the peak


class RandomWeight:
    """Stands where the loader expects a slice of a file; drawn when it is read, as [...] reads a file's."""

    def __init__(self, name: str, shape: tuple[int, ...]):
        self.name, self.shape = name, shape

    def get_shape(self) -> tuple[int, ...]:
        return self.shape

    def __getitem__(self, index: object) -> torch.Tensor:
        if "norm" in self.name and self.name.endswith("weight"):
            return torch.ones(self.shape, dtype=torch.bfloat16)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.empty(self.shape, dtype=torch.float16, device=device).normal_(std=0.02)


def checkpoint(shape) -> dict[str, RandomWeight]:
    """The official layout: experts as [E, H, 2I] and [E, I, H], which the loader transposes."""
    weights = {}
    for name, size in shape.parameters.items():
        weights[name] = RandomWeight(
            name, (size[0], size[2], size[1]) if ".experts." in name else size
        )
    return weights


def load(config: Config, processor) -> PreTrainedModel:
    """`load_base` without a checkpoint on a disk."""
    return finish(load_stock(config, processor), config, memory_plan(config))


def load_stock(config: Config, processor) -> PreTrainedModel:
    """The model with its experts in NF4, and otherwise as transformers leaves it."""
    published = published_config(config.model)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(published))
        model_config = AutoConfig.from_pretrained(folder)
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    for name, token in zip(names, SPECIAL[2:], strict=True):  # the demo's tokenizer has its own
        setattr(model_config, name, processor.tokenizer.convert_tokens_to_ids(token))
    plan = memory_plan(config)
    model_class = AutoModelForImageTextToText._model_mapping[type(model_config)]
    weights = checkpoint(read_shape(published))
    with offloading(plan.offloaded_layers if plan else ()):
        return model_class.from_pretrained(
            None, config=model_config, state_dict=weights, **loading_options(config, plan)
        )


def make_processor(patch_px: int) -> Qwen3VLProcessor:
    """The demo's tokenizer with the model's patches."""
    tokenizer = load_processor(preset("demo")).tokenizer
    images = Qwen2VLImageProcessor(patch_size=patch_px, merge_size=2, temporal_patch_size=2)
    return Qwen3VLProcessor(
        images, tokenizer, Qwen3VLVideoProcessor(), chat_template=tokenizer.chat_template
    )


def make_rows(folder: Path, side: int, count: int) -> pd.DataFrame:
    """Noise of `side` px with questions of some length."""
    rng, rows = np.random.default_rng(side), []
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(
            folder / f"{side}_{i}.bmp"
        )
        words = " ".join(
            random.Random(i).choices(
                ("red", "circle", "is", "the", "colour", "shape", "blue"), k=TEXT_WORDS
            )
        )
        options = dict(zip("abcd", ("red", "blue", "green", "yellow"), strict=True))
        rows.append(
            {
                "id": str(i),
                "path": f"{side}_{i}.bmp",
                "question": words,
                **options,
                "answer": "abcd"[i % 4],
            }
        )
    return pd.DataFrame(rows)


def run_case(name: str, base: PreTrainedModel, processor, config: Config, folder: Path) -> dict:
    """Train and score; predicted and measured peaks in GiB, seconds a row."""
    side = (
        config.image_side // 32 * 32
        if processor.image_processor.patch_size == 16
        else config.image_side // 28 * 28
    )
    rows = make_rows(folder, side, SCORE_ROWS)
    encoder = Encoder(processor, folder, config.image_side)
    shape = read_shape(published_config(config.model))
    longest = encoder.examples(rows.head(TRAIN_ROWS).to_dict("records"))["input_ids"].shape[1]
    text = longest - side**2 // shape.pixels_per_token
    limits = [size_in_bytes(size) for size in config.max_memory]
    plan = with_text(make_plan(config, shape, limits), config, shape, text)
    gpus = range(len(limits)) if torch.cuda.is_available() else []
    model = add_lora(base, config, memory_plan(config))
    paths = FoldPaths(folder / name)
    meta = train_fold(
        model, config, encoder, rows.head(TRAIN_ROWS), rows.tail(config.score_batch), paths
    )
    log = pd.read_csv(paths.train_log)
    trained = [torch.cuda.max_memory_allocated(gpu) / GIB for gpu in gpus]
    reserved = [torch.cuda.max_memory_reserved(gpu) / GIB for gpu in gpus]
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    timer = Timer()
    options = {
        "batch_size": config.score_batch,
        "orders": config.tta,
        "num_workers": config.num_workers,
    }
    probs = score_options(model.eval(), encoder, rows, **options)
    result = {
        "case": name, "gpus": len(limits), "image": side, "tokens": text + side**2 // shape.pixels_per_token,
        "micro_batch": config.micro_batch, "score_batch": config.score_batch, "lora_r": config.lora_r,
        "predicted_gib": [round(gpu.total / GIB, 2) for gpu in plan.gpus],
        "trained_gib": [round(x, 2) for x in trained], "before_evaluation_gib": float(log["memory_gib"].iloc[0]),
        "scored_gib": [round(torch.cuda.max_memory_allocated(gpu) / GIB, 2) for gpu in gpus],
        "reserved_gib": [round(x, 2) for x in reserved], "limit_gib": [round(limit / GIB, 2) for limit in limits],
        "free_gib": [round(gpu.left / GIB, 2) for gpu in plan.gpus], "context_gib": context_gib(), "streamed_layers": len(plan.offloaded_layers), "kept_layers": [len(gpu.uncheckpointed_layers) for gpu in plan.gpus],
        "layers": [sum(".layers." in module for module in gpu.modules) for gpu in plan.gpus],
        "peaks_gib": {phase: round(size / GIB, 2) for phase, size in plan.gpus[0].peaks.items()},
        "use": {group: round(size / GIB, 3) for group, size in (plan.gpus[0].weights | plan.gpus[0].training).items()},
        "train_s_per_row": round(log["seconds_per_step"].sum() / TRAIN_ROWS, 3),
        "score_s_per_row": round(timer.seconds() / SCORE_ROWS, 3),
        "losses": log["loss"].round(3).tolist(), "grad_norms": log["grad_norm"].tolist(), "skipped": meta["skipped_steps"],
        "finite": bool(np.isfinite(probs[list("abcd")].to_numpy()).all() and np.isfinite(log["loss"]).all()),
    }  # fmt: skip
    model.unload()
    return result


def context_gib() -> float:
    """What CUDA itself takes on the first GPU, beside the allocator."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info(0)
    return round((total - free - torch.cuda.memory_reserved(0)) / GIB, 2)


class Timer:
    """Wall time between its making and `seconds`, with the GPUs idle at both ends."""

    def __init__(self):
        import time

        self.now = time.perf_counter
        self.start = self._idle()

    def seconds(self) -> float:
        return self._idle() - self.start

    def _idle(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.now()


def settings(case: str) -> tuple[str, Config]:
    """`safe` or `safe:image_side=512,micro_batch=4`: a preset with changes; on one GPU, with the sum of its limits."""
    name, _, changes = case.partition(":")
    config = preset(
        name, **parse_settings(change.replace("+", ",") for change in changes.split(",") if change)
    )
    if torch.cuda.device_count() < len(config.max_memory):
        total = sum(map(size_in_bytes, config.max_memory))
        config = replace(config, max_memory=(f"{total / 1e9:g}GB",))
    config = resolve_batches(
        config,
        read_shape(published_config(config.model)),
        list(map(size_in_bytes, config.max_memory)),
    )
    return case, replace(config, data="-", num_workers=0, epochs=1)


def groups(cases: list[str]) -> Iterator[tuple[Config, list[tuple[str, Config]]]]:
    """Cases that share a loaded base, with the settings that load it."""
    waiting = [settings(case) for case in cases]
    while waiting:
        first = waiting[0][1]
        same = [(name, c) for name, c in waiting if (c.model, c.max_memory, c.offload_experts) ==
                (first.model, first.max_memory, first.offload_experts)]  # fmt: skip
        yield first, same
        waiting = [case for case in waiting if case not in same]


def main() -> None:
    """Run the cases of the command line and write what was measured after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="+", metavar="PRESET[:NAME=VALUE,...]")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results = []
    for config, cases in groups(args.cases):
        for gpu, size in enumerate(config.max_memory if torch.cuda.is_available() else ()):
            total = torch.cuda.get_device_properties(gpu).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, size_in_bytes(size) / total), gpu)
            torch.cuda.reset_peak_memory_stats(gpu)
        processor = make_processor(read_shape(published_config(config.model)).patch_px)
        timer = Timer()
        base = load(config, processor)
        loading = {
            "load_s": round(timer.seconds(), 1), "load_peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
            "weights_gib": round(torch.cuda.memory_allocated() / GIB, 2),
        }  # fmt: skip
        print(loaded_weights(base, config), flush=True)
        for name, case in cases:
            with tempfile.TemporaryDirectory() as folder:
                result = run_case(name, base, processor, case, Path(folder))
            results.append({**loading, **result})
            print(json.dumps(results[-1]), flush=True)
            args.out.write_text(json.dumps(results, indent=1))
        del base
        gc.collect()  # a model's hooks make cycles
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

"""The model of each variant that speed.py times."""

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import replace

import peer
import torch
from peft import PeftModel
from random_base import load_stock, make_processor
from stock import stock, stock_lora, usual
from transformers import AutoModelForImageTextToText, ProcessorMixin

from vqa_utils.config import Config
from vqa_utils.model.adapter import add_lora
from vqa_utils.model.loading import finish, load_processor, loading_options, model_path
from vqa_utils.model.nf4.experts import NF4Experts
from vqa_utils.planning.plan import memory_plan
from vqa_utils.presets import preset
from vqa_utils.setting_types import size_in_bytes

FORWARDS = {"usual": usual, "stock": stock, "peer": peer.experts, "ours": NF4Experts.forward}


def prepared(tiny: bool) -> tuple[torch.nn.Module, Config, ProcessorMixin]:
    """Load the stock base; return it with its settings and its processor."""
    if tiny:
        config = replace(preset("demo"), lora_dropout=0.05, micro_batch=1)
        base = AutoModelForImageTextToText.from_pretrained(
            model_path(config), **loading_options(config, None)
        )
        return base, config, load_processor(config)
    config = preset("safe")
    limit = sum(size_in_bytes(size) for size in config.max_memory)  # of both T4
    config = replace(config, max_memory=(f"{limit / 1e9:g}GB",), data="-")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    processor = make_processor(patch_px=16)
    return load_stock(config, processor), config, processor


class Adapted:
    """The model with LoRA, renewed when the variant or the settings change.

    A base that was finished for `ours` is never stock again, so `ours` comes last.
    """

    def __init__(self, base: torch.nn.Module, config: Config):
        self.model = base
        self.config = config
        self.is_ours = False
        self.has_lora = False

    def renew(self, config: Config, *, ours: bool) -> torch.nn.Module:
        """Return the model for these settings, with new LoRA layers if they changed."""
        if self.has_lora and (self.is_ours, self.config) == (ours, config):
            return self.model
        base = self.model.unload() if isinstance(self.model, PeftModel) else self.model
        if not self.is_ours:
            # Hooks that make inputs need a gradient: asked for twice, they are taken off once
            for module in base.modules():
                module._forward_hooks.clear()
        gc.collect()
        if not ours:
            self.model = stock_lora(base, config)
        else:
            plan = memory_plan(config)
            if not self.is_ours:
                base = finish(base, config, plan)
            self.model = add_lora(base, config, plan)
        self.config, self.is_ours, self.has_lora = config, ours, True
        return self.model


@contextlib.contextmanager
def computing(variant: str, model: torch.nn.Module) -> Iterator[None]:
    """Let the experts compute as a variant while this is open."""
    NF4Experts.forward = FORWARDS[variant]
    try:
        with peer.fused(model) if variant == "peer" else contextlib.nullcontext():
            yield
    finally:
        NF4Experts.forward = FORWARDS["ours"]

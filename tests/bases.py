"""Fresh bases for tests, by the memory plan for this machine (none on a CPU)."""

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from vqa_utils.model.adapter import add_lora
from vqa_utils.model.loading import load_base
from vqa_utils.planning.plan import memory_plan


def base_of(config, dtype=None):
    """The base of the settings."""
    return load_base(config, memory_plan(config), dtype=dtype)


def lora_on(base, config):
    """New LoRA layers on a base."""
    return add_lora(base, config, memory_plan(config))


def base_with_lora(config, dtype=None):
    """The base of the settings with new LoRA layers."""
    return lora_on(base_of(config, dtype), config)


def adapted_layers(dropout, bias, widths=(192,)):
    """Layers from 128 features to each of the widths."""
    torch.manual_seed(0)
    base = nn.Sequential(
        *(bnb.nn.Linear4bit(128, width, bias=bias, compute_dtype=torch.float32) for width in widths)
    )
    for layer in base:
        layer.support_avx512bf16_for_cpu = False
        weight = torch.randn(layer.out_features, 128) * 0.1
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to("cpu")
    base.is_loaded_in_4bit = True  # what tells PEFT
    targets = [str(number) for number in range(len(widths))]
    model = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=targets)
    )
    for layer in model.base_model.model:
        nn.init.normal_(layer.lora_B["default"].weight)
    return model.train()

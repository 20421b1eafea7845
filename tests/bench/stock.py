"""What speed.py compares with: the 30B as transformers and PEFT have it, but for experts in 4 bits, a layer made dense at a time."""

import functools
from types import SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from vqa_utils.config import Config
from vqa_utils.model.loading import LANGUAGE_MODEL
from vqa_utils.model.nf4.experts import NF4Experts


def dense_view(experts: NF4Experts) -> SimpleNamespace:
    """A layer's experts as transformers has them, made dense for one use."""
    with torch.no_grad():
        weights = experts.dense()
    flags = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}
    flags |= {
        "has_post_expert_norm": False,
        "_is_expert_parallel": False,
        "_apply_gate": functools.partial(_default_apply_gate, experts),
    }
    return SimpleNamespace(
        num_experts=experts.num_experts, act_fn=experts.act_fn, **flags, **weights
    )


def usual(
    self: NF4Experts, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    forward = Qwen3VLMoeTextExperts.forward
    return getattr(forward, "__wrapped__", forward)(dense_view(self), x, index, weights)


def stock(
    self: NF4Experts, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    return ALL_EXPERTS_FUNCTIONS["grouped_mm"](dense_view(self), x, index, weights)


def stock_lora(base: torch.nn.Module, config: Config) -> torch.nn.Module:
    """What the recipes do: PEFT, checkpointing, and the hook that makes the inputs need a gradient."""
    base.requires_grad_(False)
    base.config.use_cache = base.config.get_text_config().use_cache = False
    enable = (
        getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})
    base.enable_input_require_grads()
    targets = rf"{LANGUAGE_MODEL}\.({'|'.join(config.target_modules)})"
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
    )
    return get_peft_model(base, lora)

"""The opponents of speed.py: the 30B as transformers and PEFT have it, but with experts in 4 bits.

Both dequantise a layer's experts at each use, one layer at a time.
"""

import functools
from types import SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from vqa_utils.config import Config
from vqa_utils.model.adapter import LANGUAGE_MODEL
from vqa_utils.model.nf4.experts import PROJECTIONS, NF4Experts


def dense_weights(experts: NF4Experts) -> dict[str, torch.Tensor]:
    """Make all experts of a layer dense, by projection, in the compute type."""
    everyone = torch.arange(experts.num_experts, device=experts.absmax_down_proj.device)
    dense = experts.dequantizer(everyone)(slice(None))
    return dict(zip(PROJECTIONS, dense, strict=True))


def dense_view(experts: NF4Experts) -> SimpleNamespace:
    """Dequantise a layer's experts, with the attributes of transformers' own."""
    with torch.no_grad():
        weights = dense_weights(experts)
    return SimpleNamespace(
        num_experts=experts.num_experts,
        act_fn=experts.act_fn,
        has_gate=True,
        has_bias=False,
        has_post_expert_norm=False,
        is_transposed=False,
        is_concatenated=True,
        _is_expert_parallel=False,
        _apply_gate=functools.partial(_default_apply_gate, experts),
        **weights,
    )


def usual(
    self: NF4Experts, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Forward by transformers' loop over the experts: [tokens, hidden]."""
    forward = Qwen3VLMoeTextExperts.forward
    loop = getattr(forward, "__wrapped__", forward)  # without the choice of another function
    return loop(dense_view(self), x, index, weights)


def stock(
    self: NF4Experts, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Forward by transformers' default, one grouped product for all experts: [tokens, hidden]."""
    return ALL_EXPERTS_FUNCTIONS["grouped_mm"](dense_view(self), x, index, weights)


def stock_lora(base: torch.nn.Module, config: Config) -> torch.nn.Module:
    """Add LoRA as the recipes do: PEFT, checkpointing, and inputs that need a gradient."""
    base.requires_grad_(False)
    base.config.use_cache = False
    base.config.get_text_config().use_cache = False
    # transformers 5.23 renamed the method; 5.17 has the old name alone
    if hasattr(base, "activation_checkpointing_enable"):
        base.activation_checkpointing_enable({"use_reentrant": False})
    else:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=rf"{LANGUAGE_MODEL}\.({'|'.join(config.target_modules)})",
    )
    return get_peft_model(base, lora)

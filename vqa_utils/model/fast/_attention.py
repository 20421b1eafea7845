"""The language model's attention with few launches: one product for q, k and v, and one kernel for all that is done to heads."""

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vqa_utils.model.fast._lora import project
from vqa_utils.ops.heads import HeadNorms, SplitHeads

REPEATED = "sdpa_with_repeated_heads"


def use_fast_attention(model: nn.Module) -> None:
    """Give the attention of Qwen3-VL's language models, dense and mixture of experts, the forward below; others' `REPEATED`."""
    model.config.get_text_config()._attn_implementation = REPEATED
    for module in model.modules():
        if type(module).__name__ in ("Qwen3VLTextAttention", "Qwen3VLMoeTextAttention"):
            module.forward = types.MethodType(_attention, module)


def _with_repeated_heads(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Sdpa as transformers calls it, [B, heads, L, d], with k and v once for each head of q.

    Where there is no mask, transformers has torch share them between the heads; the only kernel of a T4's that can is the one
    that writes all scores out in fp32.
    """
    key, value = (repeat_kv(part, module.num_key_value_groups) for part in (key, value))
    alike = types.SimpleNamespace(
        is_causal=getattr(module, "is_causal", True)
    )  # a module whose heads need no sharing
    return sdpa_attention_forward(alike, query, key, value, *args, **kwargs)


AttentionInterface.register(REPEATED, _with_repeated_heads)
AttentionMaskInterface.register(REPEATED, sdpa_mask)


def _attention(
    self: nn.Module,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: hidden_states [B, L, H], cosines and sines [B, L, d]; with a cache it is transformers' own."""
    if has_cache(kwargs):
        return type(self).forward(
            self, hidden_states, position_embeddings, attention_mask, **kwargs
        )
    qkv = project((self.q_proj, self.k_proj, self.v_proj), hidden_states)
    attended = attend(
        *SplitHeads.apply(qkv, HeadNorms.of(self), *position_embeddings),
        attention_mask,
        self.scaling,
    )
    return self.o_proj(attended.flatten(2)), None


def has_cache(kwargs: dict[str, Any]) -> bool:
    """Whether transformers was asked to keep keys and values; the name depends on its version."""
    return any(kwargs.get(name) is not None for name in ("cache", "past_key_values"))


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attention of heads [B, L, heads, d], causal where there is no mask [B, 1, L, L] -> [B, L, heads, d]."""
    parts = (part.transpose(1, 2) for part in (q, k, v))
    causal, mask = (
        mask is None and q.shape[1] > 1,
        None if mask is None else _as_bias(mask, q.dtype),
    )
    return F.scaled_dot_product_attention(
        *parts, attn_mask=mask, is_causal=causal, scale=scaling
    ).transpose(1, 2)


def _as_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as what is added to the scores, which sdpa would make of it again in every layer; kept with the mask."""
    if mask.dtype != torch.bool:
        return mask
    if not hasattr(mask, "as_bias"):
        mask.as_bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
            ~mask, float("-inf")
        )
    return mask.as_bias

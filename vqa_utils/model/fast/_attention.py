"""Compute the language model's attention in few launches.

One product makes q, k and v, and one kernel does everything between it and the attention
(ops/heads.py).
"""

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vqa_utils.model.fast._lora import project
from vqa_utils.model.fast._shared import shared
from vqa_utils.ops.heads import HeadNorms, SplitHeads

REPEATED = "sdpa_with_repeated_heads"


def use_repeated_heads(model: nn.Module) -> None:
    """Select `REPEATED` as the attention function, for families without a fast forward."""
    model.config.get_text_config()._attn_implementation = REPEATED


def _with_repeated_heads(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Run sdpa as transformers calls it, [B, heads, L, d], with k and v repeated for q's heads.

    Without a mask, transformers has torch share them between heads. The only kernel on a T4 for
    shared heads is the one that writes all scores out in fp32.
    """
    key = repeat_kv(key, module.num_key_value_groups)  # [B, heads, L, d]
    value = repeat_kv(value, module.num_key_value_groups)  # [B, heads, L, d]
    # stands in for a module whose heads need no sharing
    alike = types.SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    return sdpa_attention_forward(alike, query, key, value, *args, **kwargs)


AttentionInterface.register(REPEATED, _with_repeated_heads)
AttentionMaskInterface.register(REPEATED, sdpa_mask)


def attention_forward(
    self: nn.Module,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Replace the forward of Qwen3-VL's language attention; with a cache, call transformers' own.

    Args:
        hidden_states: [B, L, H]
        position_embeddings: cosines and sines, [B, L, d] each.
        attention_mask: [B, 1, L, L], or None for causal attention.
    """
    if has_cache(kwargs):
        return type(self).forward(
            self, hidden_states, position_embeddings, attention_mask, **kwargs
        )
    qkv = project((self.q_proj, self.k_proj, self.v_proj), hidden_states)  # [B, L, all heads * d]
    q, k, v = SplitHeads.apply(qkv, HeadNorms.of(self), *position_embeddings)  # [B, L, heads, d]
    bias = as_bias(attention_mask, q.dtype)
    attended = attend(q, k, v, bias, self.scaling)  # [B, L, heads, d]
    return self.o_proj(attended.flatten(2)), None


def has_cache(kwargs: dict[str, Any]) -> bool:
    """Tell whether transformers was asked to keep keys and values; its version names them."""
    return any(kwargs.get(name) is not None for name in ("cache", "past_key_values"))


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attend with heads [B, L, heads, d]; return [B, L, heads, d].

    Args:
        bias: [B, 1, L, L], added to the scores; None for causal attention.
    """
    is_causal = bias is None and q.shape[1] > 1
    attended = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=bias,
        is_causal=is_causal,
        scale=scaling,
    )  # [B, heads, L, d]
    return attended.transpose(1, 2)


def as_bias(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Turn a boolean mask [B, 1, L, L] into a bias of the scores: 0, or -inf where it is False.

    Given a boolean mask, sdpa would make the same tensor in every layer; here all layers of a
    forward share one.
    """
    if mask is None or mask.dtype != torch.bool:
        return mask

    def make(mask: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return bias.masked_fill_(~mask, float("-inf"))

    return shared(mask, ("bias", dtype), make)

"""The language model's attention with few launches: one product for q, k and v, and one kernel for all that is done to heads."""

import types
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vqa_utils.launch import EIGHT, is_ready, launch
from vqa_utils.lora import project

REPEATED = "sdpa_with_repeated_heads"


def use_lean_attention(model: nn.Module) -> None:
    """Give the attention of Qwen3-VL's language models, dense and mixture of experts, the forward below; others' `REPEATED`."""
    model.config.get_text_config()._attn_implementation = REPEATED
    for module in model.modules():
        if type(module).__name__ in ("Qwen3VLTextAttention", "Qwen3VLMoeTextAttention"):
            module.forward = types.MethodType(_attention, module)


def _with_repeated_heads(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Sdpa as transformers calls it, [B, heads, L, d], with k and v once for each head of q.

    Where there is no mask, transformers has torch share them between the heads; the only kernel of a T4's that can is the one
    that writes all scores out in fp32.
    """
    key, value = (repeat_kv(part, module.num_key_value_groups) for part in (key, value))
    alike = types.SimpleNamespace(is_causal=getattr(module, "is_causal", True))  # a module whose heads need no sharing
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
        return type(self).forward(self, hidden_states, position_embeddings, attention_mask, **kwargs)
    qkv = project((self.q_proj, self.k_proj, self.v_proj), hidden_states)
    attended = attend(*SplitHeads.apply(qkv, HeadNorms.of(self), *position_embeddings), attention_mask, self.scaling)
    return self.o_proj(attended.flatten(2)), None


def has_cache(kwargs: dict[str, Any]) -> bool:
    """Whether transformers was asked to keep keys and values; the name depends on its version."""
    return any(kwargs.get(name) is not None for name in ("cache", "past_key_values"))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """Attention of heads [B, L, heads, d], causal where there is no mask [B, 1, L, L] -> [B, L, heads, d]."""
    parts = (part.transpose(1, 2) for part in (q, k, v))
    causal, mask = mask is None and q.shape[1] > 1, None if mask is None else _as_bias(mask, q.dtype)
    return F.scaled_dot_product_attention(*parts, attn_mask=mask, is_causal=causal, scale=scaling).transpose(1, 2)


def _as_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as what is added to the scores, which sdpa would make of it again in every layer; kept with the mask."""
    if mask.dtype != torch.bool:
        return mask
    if not hasattr(mask, "as_bias"):
        mask.as_bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
    return mask.as_bias


class HeadNorms(NamedTuple):
    """The RMS norms of q's and k's heads [d], and how many heads of each there are."""

    q: torch.Tensor
    k: torch.Tensor
    eps: float
    q_heads: int
    kv_heads: int

    @staticmethod
    def of(attention: nn.Module) -> "HeadNorms":
        """Those of an attention of Qwen3-VL's."""
        config, q = attention.config, attention.q_norm
        heads = config.num_attention_heads, config.num_key_value_heads
        return HeadNorms(q.weight, attention.k_norm.weight, q.variance_epsilon, *heads)


def split_heads(
    qkv: torch.Tensor, norms: HeadNorms, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q and k after their norm and rotary embedding, and v, k and v once for each head of q: [B, L, q_heads, d] each.

    Args:
        qkv: [B, L, (q_heads + 2 * kv_heads) * d], the projections side by side.
        cos, sin: [B, L, d], with equal halves.
    """
    heads = qkv.unflatten(-1, (norms.q_heads + 2 * norms.kv_heads, -1))
    if not _fits(heads, cos):
        return _split_heads(heads, norms, cos, sin)
    q, k, v = (heads.new_empty(*heads.shape[:2], norms.q_heads, heads.shape[-1]) for _ in range(3))
    launch("heads", qkv.device, qkv.numel() // EIGHT, *_inputs(heads, norms, cos, sin), q, k, v, *_sizes(heads, norms))
    return q, k, v


def split_heads_backward(
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    qkv: torch.Tensor,
    norms: HeadNorms,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """Qkv's gradient from those of q, k and v [B, L, q_heads, d]."""
    heads = qkv.unflatten(-1, (norms.q_heads + 2 * norms.kv_heads, -1))
    if not _fits(heads, cos):
        with torch.enable_grad():
            heads = heads.detach().requires_grad_()
            outputs = _split_heads(heads, norms, cos, sin)
        (grad,) = torch.autograd.grad(outputs, heads, grads)
        return grad.flatten(-2)
    lying = []
    for grad in grads:
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        lying += [grad, *grad.stride()[:3]]
    out = torch.empty_like(qkv)
    args = (*lying, heads.shape[1], *_inputs(heads, norms, cos, sin), out, *_sizes(heads, norms))
    launch("heads_backward", qkv.device, qkv.numel() // EIGHT, *args)
    return out


class SplitHeads(torch.autograd.Function):
    """`split_heads` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, norms: HeadNorms, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(qkv, cos, sin)
        ctx.norms = norms
        return split_heads(qkv, norms, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        qkv, *angles = ctx.saved_tensors
        return split_heads_backward(grads, qkv, ctx.norms, *angles), None, None, None


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """X cos + (-x2, x1) sin, with x1 and x2 the halves of x [..., heads, d]; cos and sin [..., 1, d], with equal halves."""
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat([-second, first], -1), sin)


def _split_heads(
    heads: torch.Tensor, norms: HeadNorms, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By torch's own operations; heads [B, L, q_heads + 2 * kv_heads, d]."""
    parts = heads.split([norms.q_heads, norms.kv_heads, norms.kv_heads], -2)
    cos, sin = cos[:, :, None], sin[:, :, None]
    normed = (
        F.rms_norm(part, part.shape[-1:], weight.to(part.dtype), norms.eps)
        for part, weight in zip(parts[:2], (norms.q, norms.k), strict=True)
    )
    q, k = (rotated(part, cos, sin).to(heads.dtype) for part in normed)
    repeats = norms.q_heads // norms.kv_heads
    return q, *(repeat_kv(part.transpose(1, 2), repeats).transpose(1, 2) for part in (k, parts[2]))


def _fits(heads: torch.Tensor, cos: torch.Tensor) -> bool:
    return (
        heads.dtype == cos.dtype == torch.float16
        and heads.shape[-1] in (64, 128, 256)
        and heads.is_contiguous()
        and is_ready(heads.device)
    )


def _inputs(heads: torch.Tensor, norms: HeadNorms, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return heads, norms.q.float(), norms.k.float(), cos.contiguous(), sin.contiguous()


def _sizes(heads: torch.Tensor, norms: HeadNorms) -> tuple[int, int, int, int, float]:
    rows, lanes = heads.shape[0] * heads.shape[1], heads.shape[-1] // EIGHT
    return rows, norms.q_heads, norms.kv_heads, lanes, norms.eps

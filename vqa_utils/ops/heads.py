"""From q, k and v side by side to heads: RMS norm, rotary embedding, and k and v once for each head of q."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv

from vqa_utils.ops._launch import EIGHT, is_ready, launch
from vqa_utils.ops.rotary import rotated


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
    launch(
        "heads",
        qkv.device,
        qkv.numel() // EIGHT,
        *_inputs(heads, norms, cos, sin),
        q,
        k,
        v,
        *_sizes(heads, norms),
    )
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


def _inputs(
    heads: torch.Tensor, norms: HeadNorms, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return heads, norms.q.float(), norms.k.float(), cos.contiguous(), sin.contiguous()


def _sizes(heads: torch.Tensor, norms: HeadNorms) -> tuple[int, int, int, int, float]:
    rows, lanes = heads.shape[0] * heads.shape[1], heads.shape[-1] // EIGHT
    return rows, norms.q_heads, norms.kv_heads, lanes, norms.eps

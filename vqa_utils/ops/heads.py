"""Make heads of q, k and v side by side: RMS norm, rotary embedding, k and v repeated.

            q heads     kv heads    kv heads
qkv row    |q q q q q q| k  k      | v  v      |    d values per head

q = rotated(norm(q));  k = rotated(norm(k)), three times each here;  v three times each
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv

from vqa_utils.ops.launch import EIGHT, is_ready, launch
from vqa_utils.ops.rotary import rotated

HEAD_SIZES = (64, 128, 256)  # known to the kernels: d / 8 threads per head, a power of two up to 32


class HeadNorms(NamedTuple):
    """The RMS norms of q's and k's heads, and the numbers of heads."""

    q: torch.Tensor
    """[d]"""
    k: torch.Tensor
    """[d]"""
    eps: float
    q_heads: int
    kv_heads: int

    @staticmethod
    def of(attention: nn.Module) -> "HeadNorms":
        """Return those of an attention of Qwen3-VL's."""
        config = attention.config
        return HeadNorms(
            attention.q_norm.weight,
            attention.k_norm.weight,
            attention.q_norm.variance_epsilon,
            config.num_attention_heads,
            config.num_key_value_heads,
        )


class Heads(NamedTuple):
    """The heads of an attention, [B, L, q_heads, d] each."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


def split_heads(qkv: torch.Tensor, norms: HeadNorms, cos: torch.Tensor, sin: torch.Tensor) -> Heads:
    """Make the heads.

    Args:
        qkv: [B, L, (q_heads + 2 * kv_heads) * d], the projections side by side.
        norms: of the heads.
        cos: [B, L, d], with equal halves.
        sin: [B, L, d], with equal halves.
    """
    heads = _side_by_side(qkv, norms)
    if not _has_kernel(heads, cos):
        return _by_torch(heads, norms, cos, sin)
    batch, length, _, d = heads.shape
    q, k, v = (heads.new_empty(batch, length, norms.q_heads, d) for _ in range(3))
    args = (*_inputs(heads, norms, cos, sin), q, k, v, *_sizes(heads, norms))
    launch("heads", qkv.device, qkv.numel() // EIGHT, *args)
    return Heads(q, k, v)


def split_heads_backward(
    grads: tuple[torch.Tensor, ...],
    qkv: torch.Tensor,
    norms: HeadNorms,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """Compute qkv's gradient, of qkv's shape.

    Args:
        grads: of q, k and v, [B, L, q_heads, d] each, in any layout.
        qkv: as of `split_heads`.
        norms: as of `split_heads`.
        cos: as of `split_heads`.
        sin: as of `split_heads`.
    """
    heads = _side_by_side(qkv, norms)
    if not _has_kernel(heads, cos):
        with torch.enable_grad():
            heads = heads.detach().requires_grad_()
            outputs = _by_torch(heads, norms, cos, sin)
        (grad_heads,) = torch.autograd.grad(outputs, heads, grads)
        return grad_heads.flatten(-2)  # [B, L, all * d]
    with_strides: list[torch.Tensor | int] = []
    for grad in grads:
        # The kernel takes any strides with d innermost: sdpa's transposed gradients need no copy
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        with_strides += [grad, *grad.stride()[:3]]  # from batch to batch, row, head
    out = torch.empty_like(qkv)
    length = heads.shape[1]
    inputs = _inputs(heads, norms, cos, sin)
    args = (*with_strides, length, *inputs, out, *_sizes(heads, norms))
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
        return tuple(split_heads(qkv, norms, cos, sin))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        qkv, cos, sin = ctx.saved_tensors
        return split_heads_backward(grads, qkv, ctx.norms, cos, sin), None, None, None


def _side_by_side(qkv: torch.Tensor, norms: HeadNorms) -> torch.Tensor:
    """[B, L, all * d] -> [B, L, all, d], with all = q_heads + 2 * kv_heads."""
    return qkv.unflatten(-1, (norms.q_heads + 2 * norms.kv_heads, -1))


def _by_torch(heads: torch.Tensor, norms: HeadNorms, cos: torch.Tensor, sin: torch.Tensor) -> Heads:
    """Make the heads by torch's own operations, from [B, L, q_heads + 2 * kv_heads, d]."""
    # [B, L, q_heads, d], then [B, L, kv_heads, d] twice
    q, k, v = heads.split([norms.q_heads, norms.kv_heads, norms.kv_heads], -2)
    cos = cos[:, :, None]  # [B, L, 1, d]
    sin = sin[:, :, None]  # [B, L, 1, d]
    q = _normed_and_rotated(q, norms.q, norms.eps, cos, sin)
    k = _normed_and_rotated(k, norms.k, norms.eps, cos, sin)
    repeats = norms.q_heads // norms.kv_heads
    return Heads(q, _repeated(k, repeats), _repeated(v, repeats))


def _normed_and_rotated(
    x: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """[B, L, heads, d] -> the same, in x's type."""
    normed = F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)
    return rotated(normed, cos, sin).to(x.dtype)


def _repeated(x: torch.Tensor, repeats: int) -> torch.Tensor:
    """[B, L, kv_heads, d] -> [B, L, q_heads, d], each head `repeats` times in a row."""
    return repeat_kv(x.transpose(1, 2), repeats).transpose(1, 2)


def _has_kernel(heads: torch.Tensor, cos: torch.Tensor) -> bool:
    has_types = heads.dtype == cos.dtype == torch.float16
    has_size = heads.shape[-1] in HEAD_SIZES
    return has_types and has_size and heads.is_contiguous() and is_ready(heads.device)


def _inputs(
    heads: torch.Tensor, norms: HeadNorms, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return what both kernels read, as they read it."""
    return heads, norms.q.float(), norms.k.float(), cos.contiguous(), sin.contiguous()


def _sizes(heads: torch.Tensor, norms: HeadNorms) -> tuple[int, int, int, int, float]:
    """Return both kernels' sizes: rows, heads of q, heads of k, threads per head; and eps."""
    batch, length, _, d = heads.shape
    return batch * length, norms.q_heads, norms.kv_heads, d // EIGHT, norms.eps

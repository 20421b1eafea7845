"""Norm a residual stream together with the sum in front of it: one pass over memory each way.

    sum    s = x + delta
    norm   n = s * r * weight, with r = (mean(s^2) + eps)^-1/2    (or a layer norm, forward only)
    back   d s = residual + r * (g - s * r^2 * mean(g * s)), with g = weight * d n

The residual stream is fp32 on a GPU and the products read fp16 (model/fp16.py says why). torch
takes three kernels to leave a layer's half and enter the next: the addition, the norm and the
cast.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vqa_utils.ops.launch import EIGHT, THREADS, is_ready, launch

# Four loads of EIGHT by each of a block's THREADS
WIDEST = 8192  # values of a row that a block of the kernels can hold


class Normed(NamedTuple):
    """A sum and its norm, [..., width] each."""

    total: torch.Tensor
    """the sum, in the type of x; x itself where nothing is added"""
    narrow: torch.Tensor
    """its norm, in the type of the products"""
    rest: torch.Tensor | None
    """what `narrow` lacks of it by rounding, where it was asked for; None too if that is nothing"""


def add_norm(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    norm: nn.Module,
    dtype: torch.dtype,
    *,
    rest: bool = False,
) -> Normed:
    """Add and norm, without autograd.

    Args:
        x: [..., width], the residual stream.
        delta: [..., width], added to it; None where nothing is.
        norm: an RMS norm of Qwen's, or a layer norm.
        dtype: of the products.
        rest: whether to return what the norm loses in the type of the products: in that type by
            the kernel, else in x's.
    """
    weight = norm.weight
    bias = getattr(norm, "bias", None)
    eps = _eps(norm)
    if _has_kernel(x, dtype):
        width = x.shape[-1]
        total = x if delta is None else torch.empty_like(x)
        narrow = torch.empty_like(x, dtype=dtype)
        lost = torch.empty_like(narrow) if rest else None
        args = (x, delta, weight, bias, total, narrow, lost, width, eps)
        launch("add_norm", x.device, x.numel() // width * THREADS, *args)  # one block per row
        return Normed(total, narrow, lost)
    total = x if delta is None else x + delta
    if isinstance(norm, nn.LayerNorm):
        normed = F.layer_norm(total, weight.shape, weight.to(x.dtype), norm.bias.to(x.dtype), eps)
    else:
        normed = F.rms_norm(total, weight.shape, weight, eps)
    narrow = normed.to(dtype)
    return Normed(total, narrow, normed - narrow if rest and dtype != x.dtype else None)


def norm_backward(
    x: torch.Tensor,
    norm: nn.Module,
    grad: torch.Tensor,
    residual: torch.Tensor,
    narrow: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the gradient of x, which goes into an RMS norm and past it.

    Args:
        x: [..., width]
        norm: the RMS norm.
        grad: [..., width], of the norm's output; in x's type or fp16.
        residual: [..., width], of what goes past the norm.
        narrow: a second type to return the gradient in.

    Returns:
        [..., width] in x's type, and in `narrow` where it is given.
    """
    eps = _eps(norm)
    if _has_kernel(x, narrow or torch.float16):
        width = x.shape[-1]
        out = torch.empty_like(x)
        out_narrow = torch.empty_like(x, dtype=narrow) if narrow else None
        # The kernel reads one of two: a gradient in fp16, or in fp32
        grads = (grad, None) if grad.dtype == torch.float16 else (None, grad)
        args = (x, norm.weight, *grads, residual, out, out_narrow, width, eps)
        launch("norm_backward", x.device, x.numel() // width * THREADS, *args)  # one block per row
        return out, out_narrow
    scaled = norm.weight * grad  # g
    r = (x.square().mean(-1, keepdim=True) + eps).rsqrt()  # [..., 1]
    along = (scaled * x).mean(-1, keepdim=True)  # [..., 1]
    out = residual + r * (scaled - x * r.square() * along)
    return out, out.to(narrow) if narrow else None


def _has_kernel(x: torch.Tensor, dtype: torch.dtype) -> bool:
    # The norm's own weights are fp32 where x is (model/fp16.py); the kernels rely on it
    has_types = x.dtype == torch.float32 and dtype == torch.float16
    has_width = x.shape[-1] % EIGHT == 0 and x.shape[-1] <= WIDEST
    return has_types and x.is_contiguous() and has_width and is_ready(x.device)


def _eps(norm: nn.Module) -> float:
    """Return the term beside the variance, by its name in Qwen's or in torch's norms."""
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps

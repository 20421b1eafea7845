"""Norms together with the sum that they stand behind: one pass over the residual stream, forward and backward.

The stream is fp32 on a GPU and what the matrices read is fp16 (precision.py says why); torch takes three kernels for what
leaves a layer's half and enters the next: the addition, the norm, and the cast.
"""

import torch
import torch.nn.functional as F
from torch import nn

from vqa_utils.ops._launch import THREADS, is_ready, launch

WIDEST = 8192  # values of a row that a block of the kernels can hold


def add_norm(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    norm: nn.Module,
    dtype: torch.dtype,
    *,
    wide: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Of x [..., width] and what is added to it, no autograd: the sum, its norm in `dtype`, and where `wide` that in x's type.

    Args:
        norm: an RMS norm of Qwen's, or a layer norm.
    """
    weight, bias, eps = norm.weight, getattr(norm, "bias", None), _eps(norm)
    if _fits(x, dtype):
        total = x if delta is None else torch.empty_like(x)
        narrow, normed = torch.empty_like(x, dtype=dtype), torch.empty_like(x) if wide else None
        args = (x, delta, weight, bias, total, narrow, normed, x.shape[-1], eps)
        launch("add_norm", x.device, x.numel() // x.shape[-1] * THREADS, *args)
        return total, narrow, normed
    total = x if delta is None else x + delta
    if isinstance(norm, nn.LayerNorm):
        normed = F.layer_norm(total, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)
    else:
        normed = F.rms_norm(total, weight.shape, weight, eps)
    return total, normed.to(dtype), normed if wide else None


def norm_backward(
    x: torch.Tensor,
    norm: nn.Module,
    grad: torch.Tensor,
    residual: torch.Tensor,
    narrow: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradient of x [..., width], the input of an RMS norm and of the stream past it: in x's type, and in `narrow`.

    With n = x * r * weight and r = (mean(x^2) + eps)^-1/2: dx = r * (g - x * r^2 * mean(g * x)), g = weight * grad.

    Args:
        grad: of the norm's output; in x's type or fp16.
        residual: of the stream.
    """
    if _fits(x, narrow or torch.float16):
        out = torch.empty_like(x)
        out_narrow = torch.empty_like(x, dtype=narrow) if narrow else None
        grads = (grad, None) if grad.dtype == torch.float16 else (None, grad)
        args = (x, norm.weight, *grads, residual, out, out_narrow, x.shape[-1], _eps(norm))
        launch("norm_backward", x.device, x.numel() // x.shape[-1] * THREADS, *args)
        return out, out_narrow
    scaled, r = norm.weight * grad, (x.square().mean(-1, keepdim=True) + _eps(norm)).rsqrt()
    out = residual + r * (scaled - x * r.square() * (scaled * x).mean(-1, keepdim=True))
    return out, out.to(narrow) if narrow else None


def _fits(x: torch.Tensor, dtype: torch.dtype) -> bool:
    is_known = x.dtype == torch.float32 and dtype == torch.float16 and x.is_contiguous()
    return is_known and x.shape[-1] % 8 == 0 and x.shape[-1] <= WIDEST and is_ready(x.device)


def _eps(norm: nn.Module) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps

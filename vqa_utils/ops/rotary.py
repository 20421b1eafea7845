"""Rotary embedding: heads turned by the angles of their positions."""

import torch

from vqa_utils.ops._launch import is_ready, launch


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """X cos + (-x2, x1) sin, with x1 and x2 the halves of x [..., heads, d]; cos and sin [..., 1, d], with equal halves."""
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat([-second, first], -1), sin)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turns the heads of x [patches, heads, d] in place, which may be a part of rows; cos and sin [patches, d], equal halves."""
    patches, heads, d = x.shape
    whole_rows = x.stride()[1:] == (d, 1) and cos.is_contiguous() and sin.is_contiguous()
    if (
        x.dtype == torch.float16
        and cos.dtype == torch.float32
        and d % 8 == 0
        and whole_rows
        and is_ready(x.device)
    ):
        launch("rotate", x.device, x.numel() // 8, x, x.stride(0), cos, sin, patches, heads, d)
    else:
        x.copy_(rotated(x, cos[:, None], sin[:, None]))

"""Rotate heads by the angles of their positions (rotary embedding).

y = x * cos + (-x2, x1) * sin, with x1 and x2 the halves of a head x
"""

import torch

from vqa_utils.ops._launch import EIGHT, is_ready, launch


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return the rotated heads.

    Args:
        x: [..., heads, d]
        cos: [..., 1, d], with equal halves.
        sin: [..., 1, d], with equal halves.
    """
    first, second = x.chunk(2, -1)  # [..., heads, d / 2] each
    return torch.addcmul(x * cos, torch.cat([-second, first], -1), sin)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate heads in place.

    Args:
        x: [patches, heads, d]; may be a part of rows that hold more.
        cos: [patches, d], with equal halves.
        sin: [patches, d], with equal halves.
    """
    patches, heads, d = x.shape
    has_types = x.dtype == torch.float16 and cos.dtype == torch.float32
    heads_are_dense = x.stride()[1:] == (d, 1)
    is_contiguous = heads_are_dense and cos.is_contiguous() and sin.is_contiguous()
    if has_types and d % EIGHT == 0 and is_contiguous and is_ready(x.device):
        # A thread takes four values and their partners in the other half
        launch("rotate", x.device, x.numel() // 8, x, x.stride(0), cos, sin, patches, heads, d)
    else:
        x.copy_(rotated(x, cos[:, None], sin[:, None]))  # cos and sin as [patches, 1, d]

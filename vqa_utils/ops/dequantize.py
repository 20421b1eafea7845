"""NF4 weights made dense, bit by bit as bitsandbytes does it.

bitsandbytes takes several passes over memory for what one CUDA kernel does in one. The kernel makes fp16 on a GPU; whatever
else is asked for, and a GPU for which it cannot be compiled, gets the same from bitsandbytes' own operations. On a T4, which
moves a tenth of what a newer GPU does, passes over memory are a third of a training step by the forecast's model.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import bitsandbytes.functional as bnb
import torch

from vqa_utils.nf4_format import BLOCK, GROUP
from vqa_utils.ops._launch import EIGHT, is_ready, launch


class Packed(NamedTuple):
    """Matrices of one shape in NF4, as bitsandbytes packs them, E of them."""

    weights: torch.Tensor
    """[E, n / 2] uint8, two weights a byte"""
    absmax: torch.Tensor
    """The scale of each block of 64: [E, n / 64] fp32; or [E, groups, 256] in 8 bits, with the next two"""
    scale: torch.Tensor | None = None
    """[E, groups] fp32"""
    offset: torch.Tensor | None = None
    """[E, 1] fp32"""


def dequantize(
    parts: Sequence[Packed], order: torch.Tensor | None, dtype: torch.dtype
) -> list[torch.Tensor]:
    """The matrices `order` [m] of up to two shapes (or all), dense: [m, n] of each, in `dtype`; bit by bit bitsandbytes' own."""
    device = parts[0].weights.device
    if (
        dtype == torch.float16
        and is_ready(device)
        and all(part.weights.shape[1] * 2 % BLOCK == 0 for part in parts)
    ):
        widths, count = (
            [part.weights.shape[1] * 2 for part in parts],
            len(parts[0].weights if order is None else order),
        )
        out = torch.empty(count, sum(widths), dtype=dtype, device=device)
        args = [arg for part, width in zip(parts, widths, strict=True) for arg in (*part, width)]
        args += [None, None, None, None, 0] * (2 - len(parts))
        launch(
            "dequantize",
            device,
            out.shape[1] // EIGHT,
            *args,
            _dynamic_map(device),
            order,
            out,
            rows=count,
        )
        return list(out.split(widths, dim=1))
    return [_dequantized(part if order is None else _chosen(part, order), dtype) for part in parts]


def _chosen(part: Packed, order: torch.Tensor) -> Packed:
    return Packed(*(tensor if tensor is None else tensor[order] for tensor in part))


def _dequantized(part: Packed, dtype: torch.dtype) -> torch.Tensor:
    """By bitsandbytes' operator itself, as `bnb.dequantize_4bit` transposes a tensor whose first size is 1.

    In rows of one block, as its CPU kernel (0.50.2) starts its blocks anew at each row and is wrong where columns % 64 != 0.
    """
    count, blocks = len(part.weights), part.weights.shape[1] * 2 // BLOCK
    absmax = part.absmax
    if part.scale is not None:
        code = _dynamic_map(absmax.device)
        absmax = torch.ops.bitsandbytes.dequantize_blockwise.default(
            absmax, part.scale.flatten(), code, GROUP, torch.float32
        )
        absmax = (absmax.flatten(1) + part.offset)[
            :, :blocks
        ].contiguous()  # without unfilled groups
    dense = torch.ops.bitsandbytes.dequantize_4bit.default(
        part.weights.flatten(), absmax.flatten(), BLOCK, "nf4", (absmax.numel(), BLOCK), dtype
    )
    return dense.view(count, -1)


@functools.cache
def _dynamic_map(device: torch.device) -> torch.Tensor:
    """The 8-bit code of the quantised scales. No buffer: the loader re-creates those that it finds in no checkpoint."""
    return bnb.create_dynamic_map().to(device)

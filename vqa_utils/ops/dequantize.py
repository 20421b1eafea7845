"""Make NF4 weights dense, bit by bit as bitsandbytes does it.

    weight = NF4[4-bit code] * absmax[its block of 64]
    absmax = dynamic_map[8-bit code] * scale[its group of 256] + offset    (double quantisation)

bitsandbytes takes several passes over memory for what one CUDA kernel does in one. The kernel
makes fp16 on a GPU; bitsandbytes' own operations make everything else, and serve GPUs for which
the kernel cannot be compiled. On a T4, which moves a tenth of what a newer GPU does, passes over
memory are a third of a training step by the forecast's model.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import bitsandbytes.functional as bnb
import torch

from vqa_utils.nf4_format import BLOCK, GROUP
from vqa_utils.ops.launch import EIGHT, Argument, is_ready, launch

MOST_PARTS = 3  # that the kernel takes at once: q, k and v


class Packed(NamedTuple):
    """E matrices of one shape, of n weights each, in NF4 as bitsandbytes packs them."""

    weights: torch.Tensor
    """[E, n / 2] uint8, two weights per byte"""
    absmax: torch.Tensor
    """The blocks' scales: [E, n / 64] fp32; or [E, groups, 256] in 8 bits, with the next two"""
    scale: torch.Tensor | None = None
    """[E, groups] fp32"""
    offset: torch.Tensor | None = None
    """[E, 1] fp32"""

    @property
    def width(self) -> int:
        """n, the weights of a matrix."""
        return self.weights.shape[1] * 2


def dequantize(
    parts: Sequence[Packed], order: torch.Tensor | None, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Make matrices dense.

    Args:
        parts: one to three, with as many matrices each.
        order: [m], the matrices to make; None for all.
        dtype: of the result.

    Returns:
        [m, n] of each part; views, not contiguous where there are several.
    """
    if _has_kernel(parts, dtype):
        widths = [part.width for part in parts]
        return list(_by_kernel(parts, order).split(widths, dim=1))
    chosen = parts if order is None else [_chosen(part, order) for part in parts]
    return [_by_bitsandbytes(part, dtype) for part in chosen]


def dequantize_joined(parts: Sequence[Packed], dtype: torch.dtype) -> torch.Tensor:
    """Make all matrices dense, side by side: [E, all n].

    Args:
        parts: one to three, with E matrices each.
        dtype: of the result.
    """
    if _has_kernel(parts, dtype):
        return _by_kernel(parts, None)
    dense = [_by_bitsandbytes(part, dtype) for part in parts]
    return dense[0] if len(dense) == 1 else torch.cat(dense, dim=1)


def _has_kernel(parts: Sequence[Packed], dtype: torch.dtype) -> bool:
    has_whole_blocks = all(part.width % BLOCK == 0 for part in parts)
    return dtype == torch.float16 and is_ready(parts[0].weights.device) and has_whole_blocks


def _by_kernel(parts: Sequence[Packed], order: torch.Tensor | None) -> torch.Tensor:
    """Make the chosen matrices [m, all n], each part's beside the last one's."""
    device = parts[0].weights.device
    widths = [part.width for part in parts]
    count = len(parts[0].weights if order is None else order)
    out = torch.empty(count, sum(widths), dtype=torch.float16, device=device)
    args: list[Argument] = []
    for part in parts:
        args += [*part, part.width]
    for _ in range(MOST_PARTS - len(parts)):
        args += [None, None, None, None, 0]  # an empty part: no tensors, width 0
    threads = out.shape[1] // EIGHT  # per matrix; each matrix is a row of blocks
    launch("dequantize", device, threads, *args, _dynamic_map(device), order, out, rows=count)
    return out


def _chosen(part: Packed, order: torch.Tensor) -> Packed:
    return Packed(*(None if tensor is None else tensor[order] for tensor in part))


def _by_bitsandbytes(part: Packed, dtype: torch.dtype) -> torch.Tensor:
    """Make all matrices of a part dense, [E, n].

    By bitsandbytes' operator itself, as `bnb.dequantize_4bit` transposes a tensor whose first size
    is 1. In rows of one block, as its CPU kernel (0.50.2) starts its blocks anew at each row and
    is wrong where columns % 64 != 0.
    """
    count = len(part.weights)
    blocks = part.width // BLOCK
    absmax = part.absmax
    if part.scale is not None:
        code = _dynamic_map(absmax.device)
        absmax = torch.ops.bitsandbytes.dequantize_blockwise.default(
            absmax, part.scale.flatten(), code, GROUP, torch.float32
        )  # [E, groups, 256]
        # Only the last group may be unfilled: the end of each row
        absmax = (absmax.flatten(1) + part.offset)[:, :blocks].contiguous()  # [E, blocks]
    dense = torch.ops.bitsandbytes.dequantize_4bit.default(
        part.weights.flatten(), absmax.flatten(), BLOCK, "nf4", (absmax.numel(), BLOCK), dtype
    )  # [E * blocks, 64]
    return dense.view(count, -1)


@functools.cache
def _dynamic_map(device: torch.device) -> torch.Tensor:
    """Return the 8-bit code of quantised scales, [256] fp32.

    Not a module's buffer: the loader re-creates those that are in no checkpoint.
    """
    return bnb.create_dynamic_map().to(device)

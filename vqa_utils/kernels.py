"""What torch and bitsandbytes take several passes over memory for, and one CUDA kernel each does in one (cuda/experts.cu).

The kernels take fp16 on a GPU; whatever else comes, and a GPU for which they cannot be compiled, gets the same from torch's
own operations. On a T4, which moves a tenth of what a newer GPU does, passes over memory are a third of a training step by the
model of the cost.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import bitsandbytes.functional as bnb
import torch
import torch.nn.functional as F
from torch import nn

from vqa_utils.launch import EIGHT, is_ready, launch
from vqa_utils.nf4_format import BLOCK, GROUP


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


def dequantize(parts: Sequence[Packed], order: torch.Tensor | None, dtype: torch.dtype) -> list[torch.Tensor]:
    """The matrices `order` [m] of up to two shapes (or all), dense: [m, n] of each, in `dtype`; bit by bit bitsandbytes' own."""
    device = parts[0].weights.device
    if dtype == torch.float16 and is_ready(device) and all(part.weights.shape[1] * 2 % BLOCK == 0 for part in parts):
        widths, count = [part.weights.shape[1] * 2 for part in parts], len(parts[0].weights if order is None else order)
        out = torch.empty(count, sum(widths), dtype=dtype, device=device)
        args = [arg for part, width in zip(parts, widths, strict=True) for arg in (*part, width)]
        args += [None, None, None, None, 0] * (2 - len(parts))
        launch("dequantize", device, out.shape[1] // EIGHT, *args, _dynamic_map(device), order, out, rows=count)
        return list(out.split(widths, dim=1))
    return [_dequantized(part if order is None else _chosen(part, order), dtype) for part in parts]


def gate(gate_up: torch.Tensor, weights: torch.Tensor, pair: torch.Tensor, act_fn: nn.Module) -> torch.Tensor:
    """Gated rows, act_fn(gate) * up * weight: [rows, width].

    Args:
        gate_up: [rows, 2 * width]
        weights: the router's; row r has the flat place pair[r] there.
    """
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    if _gates(gate_up, weights, act_fn):
        h = gate_up.new_empty(rows, width)
        launch("gate", h.device, h.numel() // EIGHT, gate_up, weights, pair, h, rows, width)
        return h
    gate, up = gate_up.chunk(2, dim=-1)
    return act_fn(gate).mul_(up).mul_(weights.flatten()[pair, None])


def gate_backward(
    gate_up: torch.Tensor,
    back: torch.Tensor,
    weights: torch.Tensor,
    pair: torch.Tensor,
    act_fn: nn.Module,
    dots: torch.Tensor,
) -> torch.Tensor:
    """The gradient of gate_up for h's gradient `back` [rows, width]; both may be overwritten.

    Args:
        dots: [rows] fp32, gets the gradient of each row's weight: <back, act_fn(gate) * up>.
    """
    rows, width = back.shape
    if _gates(gate_up, weights, act_fn):
        launch("gate_backward", back.device, rows * 32, gate_up, back, weights, pair, dots, rows, width)
        return gate_up
    gate, up = gate_up.chunk(2, dim=-1)
    with torch.enable_grad():
        activated = act_fn(gate.requires_grad_())
    torch.sum(back.float() * (activated.detach() * up), -1, out=dots)
    back = back.mul_(weights.flatten()[pair, None])
    (grad_gate,) = torch.autograd.grad(activated, gate, back * up)
    return torch.cat([grad_gate, back.mul_(activated.detach())], -1)


def sum_rows(rows: torch.Tensor, index: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
    """[n, H] -> [T, H]: the sum of the k rows that index [T, k] names, in fp32; from fp16 on a GPU the result is fp32 too.

    Args:
        onto: [T, H], to which the sum is added, in a tensor of its own.
    """
    tokens, width = len(index), rows.shape[1]
    is_wide = onto is None or (onto.dtype == torch.float32 and onto.is_contiguous())
    if rows.dtype == torch.float16 and width % EIGHT == 0 and is_wide and is_ready(rows.device):
        out = rows.new_empty(tokens, width, dtype=torch.float32)
        launch("sum_rows", rows.device, out.numel() // EIGHT, rows, index, onto, out, tokens, index.shape[1], width)
        return out
    total = F.embedding_bag(index, rows, mode="sum")  # one kernel without atomics, which sums in fp32
    return total if onto is None else onto + total


def _gates(gate_up: torch.Tensor, weights: torch.Tensor, act_fn: nn.Module) -> bool:
    is_silu = type(act_fn).__name__ in ("SiLU", "SiLUActivation")
    fits = gate_up.dtype == torch.float16 and weights.dtype == torch.float32 and gate_up.shape[1] % (2 * EIGHT) == 0
    return is_silu and fits and is_ready(gate_up.device)


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
        absmax = torch.ops.bitsandbytes.dequantize_blockwise.default(absmax, part.scale.flatten(), code, GROUP, torch.float32)
        absmax = (absmax.flatten(1) + part.offset)[:, :blocks].contiguous()  # without unfilled groups
    dense = torch.ops.bitsandbytes.dequantize_4bit.default(
        part.weights.flatten(), absmax.flatten(), BLOCK, "nf4", (absmax.numel(), BLOCK), dtype
    )
    return dense.view(count, -1)


@functools.cache
def _dynamic_map(device: torch.device) -> torch.Tensor:
    """The 8-bit code of the quantised scales. No buffer: the loader re-creates those that it finds in no checkpoint."""
    return bnb.create_dynamic_map().to(device)

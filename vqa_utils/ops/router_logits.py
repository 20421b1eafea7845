"""Multiply a norm by the router's weights in fp32, by products of fp16.

A number in fp32 is the sum of one in fp16 and of what that has rounded away, within 2^-22 of it or,
where that is larger, within 2^-25:

    x = narrow + rest,  w = high + low
    x w = narrow high + narrow low + rest high        rest low is below fp32's own rounding

Tensor cores multiply fp16 exactly and add in fp32. Three such products take less time than one in
fp32, for which a GPU has an eighth of the units or fewer.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from vqa_utils.ops.launch import is_ready

LARGEST_EXPONENT = 14  # of a split weight, which is below 2^14


class SplitWeight(NamedTuple):
    """A router's weight times a power of two, in two parts of fp16."""

    parts: torch.Tensor
    """[2 E, H]: high, and below it low"""
    scale: float
    """of the product of the parts, for that of the weight"""


class Logits(NamedTuple):
    """A router's logits, `scale` times the sum of their parts."""

    parts: tuple[torch.Tensor, ...]
    """[T, E] each; up to three"""
    scale: float = 1.0


def split_weight(weight: torch.Tensor) -> SplitWeight | None:
    """Split a router's weight [E, H]; None off the GPU."""
    if weight.dtype != torch.float32 or not is_ready(weight.device):
        return None
    # To the upper end of fp16, so that no low part is below fp16's least number
    _, exponent = math.frexp(weight.abs().max().item())
    scaled = weight * 2.0 ** (LARGEST_EXPONENT - exponent)
    high = scaled.half()
    low = (scaled - high.float()).half()
    return SplitWeight(torch.cat([high, low]), 2.0 ** (exponent - LARGEST_EXPONENT))


def router_logits(
    narrow: torch.Tensor,
    rest: torch.Tensor | None,
    weight: torch.Tensor,
    split: SplitWeight | None,
) -> Logits:
    """Compute the logits of [T, E], in the type of the weight.

    Args:
        narrow: [B, L, H], the norm in the type of the products.
        rest: [B, L, H], what that lacks, of `add_norm`.
        weight: [E, H], the router's.
        split: of `split_weight`.
    """
    if split is None or rest is None or rest.dtype != torch.float16:
        x = narrow if rest is None else narrow + rest
        return Logits((F.linear(x.flatten(0, -2).to(weight.dtype), weight),))
    experts = len(weight)
    both = _product(narrow.flatten(0, -2), split.parts)  # [T, 2 E]
    of_rest = _product(rest.flatten(0, -2), split.parts[:experts])  # [T, E]
    return Logits((both[:, :experts], both[:, experts:], of_rest), split.scale)


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply x [T, H] by weight [n, H], both in fp16, into [T, n] in fp32."""
    return torch.mm(x, weight.T, out_dtype=torch.float32)

"""The forward and backward of frozen mixture-of-experts weights that are kept in 4 bits.

Experts are sorted by load and go through in chunks. The experts of a chunk share one batched product, in which each has as
many rows as the busiest: few launches, at the price of some padding. `chunks.split` weighs the two.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vqa_utils.chunks import split


@dataclass(frozen=True)
class Chunk:
    """Experts that are computed together, with their slots: a row for each pair of token and expert, and padding."""

    experts: slice
    """n places in the routing's order of experts"""
    slots: slice
    """n * rows of the layer's slots"""


class Routing:
    """Where each pair of token and expert is computed. One host synchronisation, for the load of each expert.

    Attributes:
        order: [busy], the experts that have tokens, by descending load.
        chunks: in the order of their slots.
        slots: how many there are.
        pair, token: [slots], the flat place in `index` [T, k] that a slot computes, and its token; a padding slot has any.
        slot_of_pair: [T, k]
    """

    def __init__(self, index: torch.Tensor, num_experts: int, at_once: int, padding_worth: int):
        kind = torch.uint8 if num_experts <= 256 else torch.int32  # a byte is sorted in one pass
        expert_of_pair, order = index.flatten().to(kind).sort(stable=True)
        numbers = torch.arange(num_experts, device=index.device, dtype=kind)
        ends = torch.searchsorted(expert_of_pair, numbers, right=True).cpu().numpy()
        load = np.diff(ends, prepend=0)
        by_load = np.argsort(-load, kind="stable")
        sizes = split(load[by_load], at_once, padding_worth)
        self.slots = sum(experts * rows for experts, rows in sizes)
        rows_of_each = np.repeat([rows for _, rows in sizes], [experts for experts, _ in sizes])
        shift = load - ends  # from a pair's place among the sorted to its slot, of each expert
        shift[by_load[: len(rows_of_each)]] += np.cumsum(rows_of_each) - rows_of_each
        shift, by_load = torch.from_numpy(np.stack([shift, by_load])).to(index.device, non_blocking=True)
        slot = shift[expert_of_pair.int()] + torch.arange(len(order), device=index.device)
        self.order = by_load[: len(rows_of_each)]
        self.pair = order.new_zeros(self.slots).scatter_(0, slot, order)
        self.token = self.pair // index.shape[1]
        self.slot_of_pair = torch.empty_like(order).scatter_(0, order, slot).view(index.shape)
        ends = [0, *itertools.accumulate(experts for experts, _ in sizes)]
        edges = [0, *itertools.accumulate(experts * rows for experts, rows in sizes)]
        self.chunks = [
            Chunk(slice(first, last), slice(start, end))
            for (first, last), (start, end) in zip(itertools.pairwise(ends), itertools.pairwise(edges), strict=True)
        ]


def frozen_experts(x: torch.Tensor, weights: torch.Tensor, index: torch.Tensor, module: Any) -> torch.Tensor:
    """y[t] = sum_k down_e(w[t, k] * gate(gate_up_e(x[t]))), with e the k-th expert of token t.

    The weight stands before the product, where transformers has it behind: equal, fewer bytes, and in fp16 an expert's
    output that the router hardly trusts cannot overflow.

    Two nodes of autograd: the first saves the inputs, the second computes. Under layer checkpointing the recomputation ends
    once the last tensor is saved again, which is before anything is routed, dequantised or multiplied a second time. The
    routing of the forward is kept for the backward (24 bytes a pair), which then waits for nothing.

    Args:
        x: [T, H] in the compute type.
        weights, index: [T, k], the router's.
        module: an NF4Experts, or what has its `num_experts`, `at_once`, `padding_worth`, `dequantizer` and `act_fn`.

    Returns:
        [T, H]; gradients flow to x and weights, not to the experts.
    """
    routing = functools.cache(lambda: Routing(index, module.num_experts, module.at_once, module.padding_worth))
    if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad):
        return _Compute.apply(_KeepInputs.apply(x, weights, routing, module), x.detach(), weights.detach(), routing, module)
    return compute(x, weights, routing(), module)


def compute(x: torch.Tensor, weights: torch.Tensor, routing: Routing, module: Any) -> torch.Tensor:
    """The forward of `frozen_experts`."""
    dense, rows = module.dequantizer(routing.order), x.index_select(0, routing.token)
    slot_weights = weights.flatten()[routing.pair, None].to(x.dtype)
    y = torch.empty_like(rows)
    for chunk in routing.chunks:
        gate_up, down = dense(chunk.experts)
        gate, up = _product(rows[chunk.slots], gate_up.mT).chunk(2, dim=-1)
        h = module.act_fn(gate).mul_(up).mul_(slot_weights[chunk.slots])
        _product(h, down.mT, y[chunk.slots])
        del gate_up, down  # before the next chunk's are made
    return _sum_over_experts(y, routing)


def gradients(
    grad: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, routing: Routing, module: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The backward of `frozen_experts`: gradients of x and of the router's weights; dequantises once more.

    With h = act(gate) * up, an expert's output is down(w * h). Its gradient is <down^T grad, h> in w, and w * down^T grad in h.
    """
    dense, rows = module.dequantizer(routing.order), x.index_select(0, routing.token)
    grad_rows = grad.to(x.dtype).index_select(0, routing.token)
    slot_weights = weights.flatten()[routing.pair, None].to(x.dtype)
    grad_weights = torch.empty(routing.slots, dtype=torch.float32, device=x.device)
    for chunk in routing.chunks:
        gate_up, down = dense(chunk.experts)
        gate, up = _product(rows[chunk.slots], gate_up.mT).chunk(2, dim=-1)
        with torch.enable_grad():
            activated = module.act_fn(gate.requires_grad_())
        back = _product(grad_rows[chunk.slots], down)
        h = activated.detach() * up
        torch.sum(back.float() * h, -1, out=grad_weights[chunk.slots])
        back.mul_(slot_weights[chunk.slots])
        (grad_gate,) = torch.autograd.grad(activated, gate, back * up)
        grad_gate_up = torch.cat([grad_gate, back.mul_(activated.detach())], -1)
        _product(grad_gate_up, gate_up, rows[chunk.slots])  # which no later chunk reads
        del gate_up, down  # before the next chunk's are made
    return _sum_over_experts(rows, routing), grad_weights[routing.slot_of_pair].to(weights.dtype)


class _KeepInputs(torch.autograd.Function):
    """Saves what the backward needs, and makes a stand-in for the output, of its shape and without memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weights: torch.Tensor, routing: Callable[[], Routing], module: Any) -> torch.Tensor:
        ctx.save_for_backward(x, weights)
        ctx.routing, ctx.module = routing, module
        return x.new_empty(1).expand_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *gradients(grad, *ctx.saved_tensors, ctx.routing(), ctx.module), None, None


class _Compute(torch.autograd.Function):
    """Computes the output; the gradient goes on to the stand-in as it comes."""

    @staticmethod
    def forward(
        ctx: Any, stand_in: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, routing: Callable[[], Routing], module: Any
    ) -> torch.Tensor:
        return compute(x, weights, routing(), module)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grad, None, None, None, None


def _product(rows: torch.Tensor, weights: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rows [n * capacity, in] times each expert's matrix [n, in, out] -> [n * capacity, out]."""
    batches = rows.view(len(weights), -1, rows.shape[1])
    if out is None:
        return torch.bmm(batches, weights).flatten(0, 1)
    return torch.bmm(batches, weights, out=out.view(len(weights), -1, weights.shape[2]))


def _sum_over_experts(rows: torch.Tensor, routing: Routing) -> torch.Tensor:
    """[slots, H] -> [T, H]: the k rows of each token found and added by one kernel, in fp32 and without atomics."""
    return F.embedding_bag(routing.slot_of_pair, rows, mode="sum")

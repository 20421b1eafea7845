"""The forward and backward of frozen mixture-of-experts weights that are kept in 4 bits.

Experts are sorted by load and go through in chunks. The experts of a chunk share one batched product, in which each has as
many rows as the busiest: few launches, at the price of some padding. `split` weighs the two.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vqa_utils.kernels import gate, gate_backward, sum_rows

CHUNK_SHARE = 2  # a chunk has at most half as many rows as there are pairs, which bounds its buffers
CUTS = 32  # places where `split` may cut: more of them cost the host time and save little padding


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


def split(loads: Sequence[int], at_once: int, padding_worth: int) -> list[tuple[int, int]]:
    """Cut experts, sorted by load, into chunks: the number of experts and the rows that each gets.

    The cheapest cut, where a chunk costs its rows (experts * the busiest one's load) and as much as `padding_worth` more.

    Args:
        loads: rows of each expert, descending; those without any are left out.
        at_once: the most experts of a chunk, whose dense weights are alive together.
        padding_worth: the rows of padding that take as long as one more chunk.
    """
    loads = np.asarray(loads)
    busy = np.count_nonzero(loads)
    cuts = np.append(np.arange(0, busy, max(1, min(at_once, busy // CUTS))), busy)
    starts, ends = cuts[:-1, None], cuts[None, 1:]
    rows = (ends - starts) * loads[starts]  # of a chunk from one cut to another
    allowed = (ends - starts <= at_once) & (rows <= loads.sum() // CHUNK_SHARE)
    np.fill_diagonal(allowed, True)  # neighbours, which cannot be cut again
    costs = np.where(allowed, rows + padding_worth, np.inf)
    best, before = np.zeros(len(cuts)), [0]  # of the experts before each cut: the cost, and the cut where the last chunk starts
    for end in range(1, len(cuts)):
        totals = best[:end] + costs[:end, end - 1]
        before.append(int(totals.argmin()))
        best[end] = totals[before[-1]]
    sizes, end = [], len(cuts) - 1
    while end:
        sizes.append((int(cuts[end] - cuts[before[end]]), int(loads[cuts[before[end]]])))
        end = before[end]
    return sizes[::-1]


def frozen_experts(x: torch.Tensor, weights: torch.Tensor, index: torch.Tensor, module: Any) -> torch.Tensor:
    """y[t] = sum_k down_e(w[t, k] * gate(gate_up_e(x[t]))), with e the k-th expert of token t.

    The weight stands before the product, where transformers has it behind: equal, fewer bytes, and in fp16 an expert's
    output that the router hardly trusts cannot overflow.

    Two nodes of autograd: the first saves the inputs, the second computes. Under layer checkpointing the recomputation ends
    once the last tensor is saved again, which is before anything is routed, dequantised or multiplied a second time. The
    routing of the forward is kept for the backward (24 bytes a pair), which then waits for nothing.

    Args:
        x: [T, H]; products are in the module's compute type.
        weights, index: [T, k], the router's.
        module: an NF4Experts, or what has its `num_experts`, `compute_dtype`, `at_once`, `padding_worth`, `dequantizer` and
            `act_fn`.

    Returns:
        [T, H] in x's type; gradients flow to x and weights, not to the experts.
    """
    routing = functools.cache(lambda: Routing(index, module.num_experts, module.at_once, module.padding_worth))
    inputs = x.detach().to(module.compute_dtype), weights.detach().contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad):
        return _Compute.apply(_KeepInputs.apply(x, weights, *inputs, routing, module), *inputs, routing, module)
    return compute(*inputs, routing(), module).to(x.dtype)


def compute(x: torch.Tensor, weights: torch.Tensor, routing: Routing, module: Any) -> torch.Tensor:
    """The forward of `frozen_experts`."""
    dense, rows = module.dequantizer(routing.order), x.index_select(0, routing.token)
    y = torch.empty_like(rows)
    for chunk in routing.chunks:
        gate_up, down = dense(chunk.experts)
        h = gate(_product(rows[chunk.slots], gate_up.mT), weights, routing.pair[chunk.slots], module.act_fn)
        _product(h, down.mT, y[chunk.slots])
        del gate_up, down  # before the next chunk's are made
    return sum_rows(y, routing.slot_of_pair)


def gradients(
    grad: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, routing: Routing, module: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The backward of `frozen_experts`: gradients of x and of the router's weights; dequantises once more.

    With h = act(gate) * up, an expert's output is down(w * h). Its gradient is <down^T grad, h> in w, and w * down^T grad in h.
    """
    dense, rows = module.dequantizer(routing.order), x.index_select(0, routing.token)
    grad_rows = grad.to(x.dtype).index_select(0, routing.token)
    grad_weights = torch.empty(routing.slots, dtype=torch.float32, device=x.device)
    for chunk in routing.chunks:
        gate_up, down = dense(chunk.experts)
        hidden, back = _product(rows[chunk.slots], gate_up.mT), _product(grad_rows[chunk.slots], down)
        dots = grad_weights[chunk.slots]
        grad_hidden = gate_backward(hidden, back, weights, routing.pair[chunk.slots], module.act_fn, dots)
        _product(grad_hidden, gate_up, rows[chunk.slots])  # which no later chunk reads
        del gate_up, down  # before the next chunk's are made
    return sum_rows(rows, routing.slot_of_pair), grad_weights[routing.slot_of_pair]


class _KeepInputs(torch.autograd.Function):
    """Saves what the backward needs, and makes a stand-in for the output, of its shape and without memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weights: torch.Tensor, *inputs: Any) -> torch.Tensor:
        *kept, ctx.routing, ctx.module = inputs
        ctx.save_for_backward(*kept)
        return x.new_empty(1).expand_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *gradients(grad, *ctx.saved_tensors, ctx.routing(), ctx.module), None, None, None, None


class _Compute(torch.autograd.Function):
    """Computes the output; the gradient goes on to the stand-in as it comes."""

    @staticmethod
    def forward(
        ctx: Any, stand_in: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, routing: Callable[[], Routing], module: Any
    ) -> torch.Tensor:
        return compute(x, weights, routing(), module).to(stand_in.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grad, None, None, None, None


def _product(rows: torch.Tensor, weights: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rows [n * capacity, in] times each expert's matrix [n, in, out] -> [n * capacity, out]."""
    batches = rows.view(len(weights), -1, rows.shape[1])
    if out is None:
        return torch.bmm(batches, weights).flatten(0, 1)
    return torch.bmm(batches, weights, out=out.view(len(weights), -1, weights.shape[2]))

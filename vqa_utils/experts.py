"""The forward and backward of frozen mixture-of-experts weights that are kept in 4 bits.

Experts are sorted by load and go through in chunks. The experts of a chunk share one batched product, in which each has as
many rows as the busiest: few launches, at the price of some padding. `split` weighs the two.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

CHUNK_SHARE = 4  # a chunk has at most a quarter of the pairs (or one expert), which bounds its buffers


@dataclass(frozen=True)
class Chunk:
    """Experts that are computed together, with their slots: a row for each pair of token and expert, and padding."""

    experts: torch.Tensor
    """[n]"""
    slots: slice
    """n * capacity of the layer's slots"""


class Routing:
    """Where each pair of token and expert is computed. One host synchronisation, for the load of each expert.

    Attributes:
        chunks: in the order of their slots.
        pair: [slots], the flat place in `index` [T, k]; a padding slot has that of a pair which is there too.
        token: [slots]
        target: [slots], `pair`, and T * k in a padding slot.
    """

    def __init__(self, index: torch.Tensor, num_experts: int, at_once: int, padding_worth: int):
        expert_of_pair, order = index.flatten().sort(stable=True)
        first = torch.searchsorted(expert_of_pair, torch.arange(num_experts + 1, device=index.device))
        load, by_load = first.diff().sort(descending=True)
        sizes = split(load.tolist(), at_once, padding_worth)
        capacity = torch.tensor([rows for experts, rows in sizes for _ in range(experts)], device=index.device)
        total = sum(experts * rows for experts, rows in sizes)
        rank = torch.repeat_interleave(capacity, output_size=total)
        place = torch.arange(total, device=index.device) - (capacity.cumsum(0) - capacity)[rank]
        self.pair = order[(first[by_load[rank]] + place).clamp_(max=len(order) - 1)]
        self.token = self.pair // index.shape[1]
        self.target = torch.where(place < load[rank], self.pair, len(order))
        self.chunks = list(_chunks(sizes, by_load))


def split(loads: Sequence[int], at_once: int, padding_worth: int) -> list[tuple[int, int]]:
    """Cut experts, sorted by load, into chunks: the number of experts and the rows that each gets.

    A chunk ends before its padding costs more than one more chunk would, and before it has too many experts or rows.

    Args:
        loads: rows of each expert, descending; those without any are left out.
        at_once: the most experts of a chunk, whose dense weights are alive together.
        padding_worth: the rows of padding that take as long as one more chunk.
    """
    rows_at_once, sizes, start, padding = sum(loads) // CHUNK_SHARE, [], 0, 0
    busy = [load for load in loads if load]
    for number, load in enumerate(busy):
        padding += busy[start] - load
        count = number - start
        if count and (count == at_once or padding > padding_worth or (count + 1) * busy[start] > rows_at_once):
            sizes.append((count, busy[start]))
            start, padding = number, 0
    return [*sizes, (len(busy) - start, busy[start])] if busy else []


def _chunks(sizes: Sequence[tuple[int, int]], by_load: torch.Tensor) -> Iterator[Chunk]:
    expert = slot = 0
    for count, rows in sizes:
        yield Chunk(by_load[expert : expert + count], slice(slot, slot + count * rows))
        expert, slot = expert + count, slot + count * rows


def frozen_experts(x: torch.Tensor, weights: torch.Tensor, index: torch.Tensor, module: Any) -> torch.Tensor:
    """y[t] = sum_k down_e(w[t, k] * gate(gate_up_e(x[t]))), with e the k-th expert of token t.

    The weight stands before the product, where transformers has it behind: equal, fewer bytes, and in fp16 an expert's
    output that the router hardly trusts cannot overflow.

    Two nodes of autograd: the first saves the inputs, the second computes. Under layer checkpointing the recomputation ends
    once the last tensor is saved again, which is before anything is dequantised or multiplied a second time.

    Args:
        x: [T, H] in the compute type.
        weights, index: [T, k], the router's.
        module: an NF4Experts, or what has its `num_experts`, `at_once`, `padding_worth`, `dequantizer` and `apply_gate`.

    Returns:
        [T, H]; gradients flow to x and weights, not to the experts.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad):
        return _Compute.apply(_KeepInputs.apply(x, weights, index, module), x.detach(), weights.detach(), index, module)
    return compute(x, weights, index, module)


def compute(x: torch.Tensor, weights: torch.Tensor, index: torch.Tensor, module: Any) -> torch.Tensor:
    """The forward of `frozen_experts`."""
    routing = Routing(index, module.num_experts, module.at_once, module.padding_worth)
    gate_up, down = module.dequantizer("gate_up_proj"), module.dequantizer("down_proj")
    slot_weights = weights.flatten()[routing.pair, None].to(x.dtype)
    y = x.new_empty(index.numel() + 1, x.shape[1])  # padding is written to the row behind the last
    for chunk in routing.chunks:
        pre = _product(x[routing.token[chunk.slots]], gate_up(chunk.experts).mT)
        h = module.apply_gate(pre).mul_(slot_weights[chunk.slots])
        y.index_copy_(0, routing.target[chunk.slots], _product(h, down(chunk.experts).mT))
    return _sum_over_experts(y, index)


def gradients(
    grad: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, index: torch.Tensor, module: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The backward of `frozen_experts`: gradients of x and of the router's weights; dequantises once more."""
    routing = Routing(index, module.num_experts, module.at_once, module.padding_worth)
    gate_up, down = module.dequantizer("gate_up_proj"), module.dequantizer("down_proj")
    slot_weights, grad = weights.flatten()[routing.pair, None].to(x.dtype), grad.to(x.dtype)
    grad_weights = torch.empty(index.numel() + 1, dtype=torch.float32, device=x.device)
    grad_pairs = x.new_empty(index.numel() + 1, x.shape[1])
    for chunk in routing.chunks:
        token, target, dense = routing.token[chunk.slots], routing.target[chunk.slots], gate_up(chunk.experts)
        pre = _product(x[token], dense.mT)
        with torch.enable_grad():
            pre.requires_grad_()
            h = module.apply_gate(pre)
        # loss = <grad, down(w * h)>, so its gradient is <down^T grad, h> in w and w * down^T grad in h
        back = _product(grad[token], down(chunk.experts))
        grad_weights.index_copy_(0, target, (back.float() * h.detach()).sum(-1))
        (grad_pre,) = torch.autograd.grad(h, pre, back.mul_(slot_weights[chunk.slots]))
        grad_pairs.index_copy_(0, target, _product(grad_pre, dense))
        del dense  # before the next chunk's is made
    return _sum_over_experts(grad_pairs, index), grad_weights[:-1].view_as(weights).to(weights.dtype)


class _KeepInputs(torch.autograd.Function):
    """Saves what the backward needs, and makes a stand-in for the output, of its shape and without memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weights: torch.Tensor, index: torch.Tensor, module: Any) -> torch.Tensor:
        ctx.save_for_backward(x, weights, index)
        ctx.module = module
        return x.new_empty(1).expand_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *gradients(grad, *ctx.saved_tensors, ctx.module), None, None


class _Compute(torch.autograd.Function):
    """Computes the output; the gradient goes on to the stand-in as it comes."""

    @staticmethod
    def forward(ctx: Any, stand_in: torch.Tensor, *inputs: Any) -> torch.Tensor:
        return compute(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grad, None, None, None, None


def _product(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Rows [n * capacity, in] times each expert's matrix [n, in, out] -> [n * capacity, out]."""
    return torch.bmm(rows.view(len(weights), -1, rows.shape[1]), weights).flatten(0, 1)


def _sum_over_experts(pairs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[T * k + 1, H] -> [T, H], the k rows of each token added without atomics."""
    return pairs[:-1].view(*index.shape, -1).sum(1)

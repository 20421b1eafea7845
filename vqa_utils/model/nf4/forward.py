"""Compute frozen experts that are kept in 4 bits, forward and backward.

Experts are sorted by load and go through in chunks. The experts of a chunk share one batched
product, in which each has as many slots as the busiest (ops/expert_slots.py): few launches, at the
price of padding. Everything else is done for a group of chunks at a time, as many as may be dense
together:

    x [T, H] -> slots [slots, H] -> gate_up -> gate -> down -> slots [slots, H] -> sums [T, H]
                                    |-----|            |--|    products, a chunk at a time
                                    |--------------------|     a group at a time
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from vqa_utils.ops.expert_slots import Chunk, Routing
from vqa_utils.ops.gate import gate, gate_backward
from vqa_utils.ops.token_rows import spread_rows, sum_rows


def frozen_experts(
    x: torch.Tensor, weights: torch.Tensor, index: torch.Tensor, module: Any
) -> torch.Tensor:
    """Compute y[t] = sum_k down_e(w[t, k] * gate(gate_up_e(x[t]))); e is token t's k-th expert.

    The weight stands before the product; in transformers it comes after. The two are equal, this
    one takes fewer bytes, and an expert's output that the router hardly trusts cannot overflow in
    fp16.

    Two nodes of autograd: the first saves the inputs, the second computes. Under activation
    checkpointing, recomputation ends once the last tensor is saved again: before anything is
    routed, dequantised or multiplied a second time. The forward's routing is kept for the backward
    (16 bytes per pair), which then waits for nothing.

    Args:
        x: [T, H]; products are in the module's compute type.
        weights: [T, k], the router's.
        index: [T, k], the router's.
        module: an NF4Experts, or what has its `num_experts`, `compute_dtype`, `at_once`,
            `padding_worth`, `dequantizer` and `act_fn`.

    Returns:
        [T, H] in x's type; gradients flow to x and weights, not to the experts.
    """
    routing = functools.cache(lambda: routed(index, module))  # made by the first node to need it
    narrow = x.detach().to(module.compute_dtype)  # [T, H]
    kept_weights = weights.detach().contiguous()  # [T, k]
    if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad):
        stand_in = _KeepInputs.apply(x, weights, narrow, kept_weights, routing, module)
        return _Compute.apply(stand_in, narrow, kept_weights, routing, module)
    return compute(narrow, kept_weights, routing(), module).to(x.dtype)


def routed(index: torch.Tensor, module: Any) -> Routing:
    """Route the pairs [T, k]; while the host waits for loads, a GPU makes the first group dense."""
    first = slice(0, min(module.at_once, module.num_experts))
    # With fewer pairs than experts, most of the first group would have no token
    is_ahead = index.is_cuda and index.numel() > first.stop

    def meanwhile(order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        return module.dequantizer(order)(first) if is_ahead else None

    return Routing(index, module.num_experts, module.at_once, module.padding_worth, meanwhile)


def compute(
    x: torch.Tensor,
    weights: torch.Tensor,
    routing: Routing,
    module: Any,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the forward of `frozen_experts`, without autograd.

    Args:
        x: [T, H], in the compute type.
        weights: [T, k], contiguous.
        routing: of `routed`.
        module: as of `frozen_experts`.
        onto: [T, H], which the result is added to.

    Returns:
        [T, H]
    """
    dense = module.dequantizer(routing.order)
    rows = spread_rows(x, routing.slot_of_pair, routing.slots)  # [slots, H]
    ahead, routing.meanwhile = routing.meanwhile, None  # it is used once
    for group in routing.groups:
        gate_up, down = ahead or dense(group.experts)  # [m, 2I, H], [m, H, I]
        ahead = None
        of_group = rows[group.slots]  # [n, H]
        hidden = rows.new_empty(len(of_group), gate_up.shape[1])  # [n, 2I]
        for chunk in group.chunks:
            _multiply(of_group, gate_up.mT, hidden, chunk)
        h = gate(hidden, weights, routing.pair[group.slots], module.act_fn)  # [n, I]
        for chunk in group.chunks:
            _multiply(
                h, down.mT, of_group, chunk
            )  # the inputs are read no more: it takes their place
        del gate_up, down, hidden, h  # before the next group's are made
    return sum_rows(rows, routing.slot_of_pair, onto)


def gradients(
    grad: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, routing: Routing, module: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the backward of `frozen_experts`; dequantise once more, recompute the hidden values.

    With h = act(gate) * up, an expert's output is down(w * h). Its gradient is <down^T grad, h> in
    w, and w * down^T grad in h.

    Args:
        grad: [T, H], of the result.
        x: [T, H], as of `compute`.
        weights: [T, k], as of `compute`.
        routing: of the forward.
        module: as of `frozen_experts`.

    Returns:
        The gradients of x [T, H] and of the router's weights [T, k].
    """
    dense = module.dequantizer(routing.order)
    rows = spread_rows(x, routing.slot_of_pair, routing.slots)  # [slots, H]
    grad_rows = spread_rows(grad.to(x.dtype), routing.slot_of_pair, routing.slots)  # [slots, H]
    grad_weights = torch.empty(routing.slots, dtype=torch.float32, device=x.device)
    for group in routing.groups:
        gate_up, down = dense(group.experts)  # [m, 2I, H], [m, H, I]
        of_group = rows[group.slots]  # [n, H]
        grad_of_group = grad_rows[group.slots]  # [n, H]
        hidden = rows.new_empty(len(of_group), gate_up.shape[1])  # [n, 2I]
        back = rows.new_empty(len(of_group), down.shape[2])  # [n, I], the gradient of w * h
        for chunk in group.chunks:
            _multiply(of_group, gate_up.mT, hidden, chunk)
            _multiply(grad_of_group, down, back, chunk)
        pair = routing.pair[group.slots]  # [n]
        dots = grad_weights[group.slots]  # [n], filled by the next line
        hidden = gate_backward(hidden, back, weights, pair, module.act_fn, dots)  # [n, 2I]
        for chunk in group.chunks:
            _multiply(hidden, gate_up, of_group, chunk)  # the inputs are read no more
        del gate_up, down, hidden, back  # before the next group's are made
    # [T, H], [T, k]; no pair is in a padding slot, so what those computed is not read
    return sum_rows(rows, routing.slot_of_pair), grad_weights[routing.slot_of_pair]


class _KeepInputs(torch.autograd.Function):
    """Save what the backward needs; the output is a stand-in of the right shape, without memory."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weights: torch.Tensor,
        narrow: torch.Tensor,
        kept_weights: torch.Tensor,
        routing: Callable[[], Routing],
        module: Any,
    ) -> torch.Tensor:
        ctx.save_for_backward(narrow, kept_weights)
        ctx.routing = routing
        ctx.module = module
        return x.new_empty(1).expand_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        narrow, kept_weights = ctx.saved_tensors
        grad_x, grad_weights = gradients(grad, narrow, kept_weights, ctx.routing(), ctx.module)
        return grad_x, grad_weights, None, None, None, None


class _Compute(torch.autograd.Function):
    """Compute the output; its gradient goes on to the stand-in as it comes."""

    @staticmethod
    def forward(
        ctx: Any,
        stand_in: torch.Tensor,
        x: torch.Tensor,
        weights: torch.Tensor,
        routing: Callable[[], Routing],
        module: Any,
    ) -> torch.Tensor:
        return compute(x, weights, routing(), module).to(stand_in.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grad, None, None, None, None


def _multiply(rows: torch.Tensor, weights: torch.Tensor, out: torch.Tensor, chunk: Chunk) -> None:
    """Multiply a chunk's rows by each of its experts' matrices, into its rows of `out`.

    Args:
        rows: [slots of the group, in]
        weights: [experts of the group, in, out]
        out: [slots of the group, out]
        chunk: n experts with equally many slots.
    """
    matrices = weights[chunk.experts]  # [n, in, out]
    count, width_in, width_out = matrices.shape
    of_chunk = rows[chunk.slots].view(count, -1, width_in)  # [n, capacity, in]
    torch.bmm(of_chunk, matrices, out=out[chunk.slots].view(count, -1, width_out))

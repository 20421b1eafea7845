"""The forward and backward of frozen mixture-of-experts weights that are kept in 4 bits.

Experts are sorted by load and go through in chunks. The experts of a chunk share one batched product, in which each has as
many rows as the busiest: few launches, at the price of some padding (`routing`). What is not a product is done for a group of
chunks at a time, as many as may be dense together.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from vqa_utils.ops.gate import gate, gate_backward
from vqa_utils.ops.routing import Routing
from vqa_utils.ops.sum_rows import sum_rows


def frozen_experts(
    x: torch.Tensor, weights: torch.Tensor, index: torch.Tensor, module: Any
) -> torch.Tensor:
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
    routing = functools.cache(lambda: routed(index, module))
    inputs = x.detach().to(module.compute_dtype), weights.detach().contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad):
        return _Compute.apply(
            _KeepInputs.apply(x, weights, *inputs, routing, module), *inputs, routing, module
        )
    return compute(*inputs, routing(), module).to(x.dtype)


def routed(index: torch.Tensor, module: Any) -> Routing:
    """Where the pairs [T, k] go. While the host waits for the loads, a GPU makes the first group dense."""
    first = slice(0, min(module.at_once, module.num_experts))
    ahead = (
        index.is_cuda and index.numel() > first.stop
    )  # else most of these have no token, and would be made for nothing

    def meanwhile(order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        return module.dequantizer(order)(first) if ahead else None

    return Routing(index, module.num_experts, module.at_once, module.padding_worth, meanwhile)


def compute(
    x: torch.Tensor,
    weights: torch.Tensor,
    routing: Routing,
    module: Any,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:
    """The forward of `frozen_experts`, added to `onto` [T, H] where it is given."""
    dense, rows = module.dequantizer(routing.order), x.index_select(0, routing.token)
    ahead, routing.meanwhile = routing.meanwhile, None
    for group in routing.groups:
        gate_up, down = ahead or dense(group.experts)
        ahead, of_group = None, rows[group.slots]
        hidden = rows.new_empty(len(of_group), gate_up.shape[1])
        for chunk in group.chunks:
            _product(of_group[chunk.slots], gate_up[chunk.experts].mT, hidden[chunk.slots])
        h = gate(hidden, weights, routing.pair[group.slots], module.act_fn)
        for chunk in group.chunks:
            _product(
                h[chunk.slots], down[chunk.experts].mT, of_group[chunk.slots]
            )  # which nothing reads any more
        del gate_up, down, hidden, h  # before the next group's are made
    return sum_rows(rows, routing.slot_of_pair, onto)


def gradients(
    grad: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, routing: Routing, module: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The backward of `frozen_experts`: gradients of x and of the router's weights; dequantises once more.

    With h = act(gate) * up, an expert's output is down(w * h). Its gradient is <down^T grad, h> in w, and w * down^T grad in h.
    """
    dense, rows = module.dequantizer(routing.order), x.index_select(0, routing.token)
    grad_rows = grad.to(x.dtype).index_select(0, routing.token)
    grad_weights = torch.empty(routing.slots, dtype=torch.float32, device=x.device)
    for group in routing.groups:
        gate_up, down = dense(group.experts)
        of_group, grad_of_group = rows[group.slots], grad_rows[group.slots]
        hidden, back = (
            rows.new_empty(len(of_group), width) for width in (gate_up.shape[1], down.shape[2])
        )
        for chunk in group.chunks:
            _product(of_group[chunk.slots], gate_up[chunk.experts].mT, hidden[chunk.slots])
            _product(grad_of_group[chunk.slots], down[chunk.experts], back[chunk.slots])
        dots = grad_weights[group.slots]
        hidden = gate_backward(
            hidden, back, weights, routing.pair[group.slots], module.act_fn, dots
        )
        for chunk in group.chunks:
            _product(
                hidden[chunk.slots], gate_up[chunk.experts], of_group[chunk.slots]
            )  # which nothing reads any more
        del gate_up, down, hidden, back  # before the next group's are made
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
        return (
            *gradients(grad, *ctx.saved_tensors, ctx.routing(), ctx.module),
            None,
            None,
            None,
            None,
        )


class _Compute(torch.autograd.Function):
    """Computes the output; the gradient goes on to the stand-in as it comes."""

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


def _product(rows: torch.Tensor, weights: torch.Tensor, out: torch.Tensor) -> None:
    """Rows [n * capacity, in] times each expert's matrix [n, in, out] -> out [n * capacity, out]."""
    count, width_in, width_out = weights.shape
    torch.bmm(rows.view(count, -1, width_in), weights, out=out.view(count, -1, width_out))

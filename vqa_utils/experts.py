"""The forward and backward of frozen mixture-of-experts weights that are kept in 4 bits."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

Counts = Sequence[int]


def grouped_product(rows: torch.Tensor, weights: torch.Tensor, counts: Counts, out: torch.Tensor | None = None) -> torch.Tensor:
    """Each expert's rows times its own matrix.

    Args:
        rows: [N, in], sorted by expert.
        weights: [E, in, out].
        counts: E row counts that sum to N; an expert without rows costs nothing.
        out: [N, out] to write to; a new tensor where there is none.

    Returns:
        [N, out]
    """
    out = rows.new_empty(len(rows), weights.shape[2]) if out is None else out
    start = 0
    for expert, count in enumerate(counts):
        if count:
            torch.mm(rows[start : start + count], weights[expert], out=out[start : start + count])
        start += count
    return out


class FrozenExperts(torch.autograd.Function):
    """y[t] = sum_k down_e(w[t, k] * gate(gate_up_e(x[t]))), with e the k-th expert of token t.

    The weight stands before the product, where transformers has it behind: equal, fewer bytes, and in fp16 an expert's
    output that the router hardly trusts cannot overflow.

    Only the inputs are saved: the backward dequantises the weights again, since keeping a layer's dense weights for
    all layers would undo the 4 bits. At any time, the dense weights of `module.at_once` experts are alive. There is no
    gradient for the weights. One host synchronisation a call, for the number of tokens of each expert.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weights: torch.Tensor, index: torch.Tensor, module: Any) -> torch.Tensor:
        """Inputs x [T, H], the router's weights [T, k] and index [T, k], an NF4Experts -> [T, H]."""
        ctx.save_for_backward(x, weights, index)
        ctx.module = module
        order, token, counts = sort_by_expert(index, module.num_experts)
        sorted_weights = weights.flatten()[order, None].to(x.dtype)
        y = x.new_empty(len(token), x.shape[1])
        for experts, rows in chunks(counts, module.at_once):
            pre = grouped_product(x[token[rows]], module.dense("gate_up_proj", experts).mT, counts[experts])
            h = module.apply_gate(pre).mul_(sorted_weights[rows])
            grouped_product(h, module.dense("down_proj", experts).mT, counts[experts], y[rows])
        return sum_over_experts(y, order, index.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x and of the router's weights."""
        (x, weights, index), module = ctx.saved_tensors, ctx.module
        order, token, counts = sort_by_expert(index, module.num_experts)
        sorted_weights = weights.flatten()[order, None].to(x.dtype)
        grad_weights = torch.empty(weights.numel(), dtype=torch.float32, device=x.device)
        grad_pairs = x.new_empty(len(token), x.shape[1])
        for experts, rows in chunks(counts, module.at_once):
            gate_up = module.dense("gate_up_proj", experts)
            pre = grouped_product(x[token[rows]], gate_up.mT, counts[experts])
            with torch.enable_grad():
                pre.requires_grad_()
                h = module.apply_gate(pre)
            # loss = <grad, down(w * h)>, so its gradient is <down^T grad, h> in w and w * down^T grad in h
            back = grouped_product(grad[token[rows]].to(x.dtype), module.dense("down_proj", experts), counts[experts])
            grad_weights[order[rows]] = (back.float() * h.detach().float()).sum(-1)
            (grad_pre,) = torch.autograd.grad(h, pre, back * sorted_weights[rows])
            grouped_product(grad_pre, gate_up, counts[experts], grad_pairs[rows])
            del gate_up  # before the next chunk's is made
        grad_x = sum_over_experts(grad_pairs, order, index.shape)
        return grad_x, grad_weights.view_as(weights).to(weights.dtype), None, None


def sort_by_expert(index: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Pairs of token and expert sorted by expert: their places in `index` [T * k], their tokens, rows for each expert."""
    flat = index.flatten()
    order = flat.argsort(stable=True)
    return order, order // index.shape[1], torch.bincount(flat, minlength=num_experts).tolist()


def chunks(counts: Counts, size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of `size` experts with the slices of their rows; without those that no token chose."""
    start = 0
    for first in range(0, len(counts), size):
        count = sum(counts[first : first + size])
        if count:
            yield slice(first, first + size), slice(start, start + count)
        start += count


def sum_over_experts(rows: torch.Tensor, order: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Rows [T * k, H] in sorted order -> [T, H], the k rows of each token added without atomics."""
    unsorted = torch.empty_like(rows).index_copy_(0, order, rows)
    return unsorted.view(*shape, -1).sum(1)

"""Frozen mixture-of-experts weights in 4 bits: how they are packed, and their forward and backward."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import bitsandbytes.functional as bnb
import torch
from torch import nn
from transformers.integrations.moe import _default_apply_gate

from vqa_utils.memory import BLOCK, EXPERTS_AT_ONCE, GROUP
from vqa_utils.streaming import ExpertStream

PROJECTIONS = ("gate_up_proj", "down_proj")
EVERY_EXPERT = slice(None)
Counts = Sequence[int]


class NF4Experts(nn.Module):
    """A layer's frozen experts: `gate_up_proj` [E, 2I, H] and `down_proj` [E, H, I] as packed NF4.

    Each expert is one bitsandbytes NF4 tensor, so the numbers are those of `bnb.functional.quantize_4bit(weight[e])`.
    """

    at_once = EXPERTS_AT_ONCE
    stream: ExpertStream | None = None
    host: dict[str, torch.Tensor] | None = None

    def __init__(
        self,
        experts: nn.Module,
        compute_dtype: torch.dtype,
        double_quant: bool,
        *,
        packed: bool = False,
        streamed: bool = False,
    ):
        """Takes the place of `experts`, whose weights are not there yet.

        Args:
            packed: the checkpoint has them in 4 bits already.
            streamed: what is loaded goes to host memory, and `stream` brings it back for each use.
        """
        super().__init__()
        self.num_experts, self.act_fn, self.compute_dtype = experts.num_experts, experts.act_fn, compute_dtype
        self.double_quant, self.shapes = double_quant, {}
        for name in PROJECTIONS:
            weight = getattr(experts, name)
            count, rows, columns = weight.shape
            if rows * columns % BLOCK:
                raise ValueError(f"{name}: expected experts of a multiple of {BLOCK} weights, found {rows} x {columns}")
            self.shapes[name] = (rows, columns)
            # The parameter keeps its 16-bit shape until it is quantised: the loader's transpose and device planner read it
            weight = torch.empty(count, rows * columns // 2, dtype=torch.uint8, device="meta") if packed else weight
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))
            for prefix, (dtype, shape) in self._statistics(rows * columns // BLOCK).items():
                self.register_buffer(prefix + name, torch.empty(count, *shape, dtype=dtype, device="meta"))
        self.host = {} if streamed else None

    def __setattr__(self, name: str, value: Any) -> None:
        """Where this layer is streamed, a loaded tensor stays in host memory and leaves an empty one behind."""
        if self.host is not None and isinstance(value, torch.Tensor) and name.endswith(PROJECTIONS):
            self.host[name] = value.detach().cpu().pin_memory() if value.is_cuda else value.detach()
            value = type(value)(
                value.detach()[:0].clone(), **({"requires_grad": False} if isinstance(value, nn.Parameter) else {})
            )
            value._is_hf_initialized = True
        super().__setattr__(name, value)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The packed weights and their statistics by name, on the device that computes."""
        if self.host is not None:
            return self.stream.fetch(self.host)
        return {**self._parameters, **self._buffers}

    def _statistics(self, blocks: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of what is kept beside an expert's packed weights, by name prefix.

        (The loader takes each name that has `experts.gate_up_proj` in it for the weight, and would transpose it.)
        """
        if not self.double_quant:
            return {"absmax_": (torch.float32, (blocks,))}
        groups = math.ceil(blocks / GROUP)
        return {
            "absmax_": (torch.uint8, (groups, GROUP)),  # whole groups, so that all experts dequantise in one call
            "scale_": (torch.float32, (groups,)),
            "offset_": (torch.float32, (1,)),
        }

    @torch.no_grad()
    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """[E, rows, columns] -> the packed weights [E, rows * columns / 2] and their statistics, by name prefix."""
        parts: dict[str, list[torch.Tensor]] = {}
        for expert in weight:
            packed, state = bnb.quantize_4bit(
                expert.contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=self.double_quant
            )
            found = {"": packed.flatten(), "absmax_": state.absmax}
            if self.double_quant:
                absmax = state.absmax.new_zeros(len(state.state2.absmax) * GROUP)
                absmax[: len(state.absmax)] = state.absmax
                found |= {"absmax_": absmax.view(-1, GROUP), "scale_": state.state2.absmax, "offset_": state.offset.view(1)}
            for prefix, tensor in found.items():
                parts.setdefault(prefix, []).append(tensor)
        return {prefix: torch.stack(tensors) for prefix, tensors in parts.items()}

    def dense(self, name: str, experts: slice = EVERY_EXPERT) -> torch.Tensor:
        """One projection of some experts, [n, rows, columns] in the compute type; three kernels for any n."""
        rows, columns = self.shapes[name]
        tensors = self.tensors()
        packed, absmax = tensors[name][experts], tensors[f"absmax_{name}"][experts]
        if self.double_quant:
            absmax = torch.ops.bitsandbytes.dequantize_blockwise.default(
                absmax, tensors[f"scale_{name}"][experts].flatten(), _dynamic_map(absmax.device), GROUP, torch.float32
            )
            absmax = absmax.flatten(1)[:, : rows * columns // BLOCK] + tensors[f"offset_{name}"][experts]
        # The operator itself, as bnb.dequantize_4bit transposes a tensor whose first size is 1; in rows of one block, as
        # bitsandbytes' CPU kernel (0.50.2) starts its blocks anew at each row and is wrong where columns % 64 != 0
        weight = torch.ops.bitsandbytes.dequantize_4bit.default(
            packed.flatten(), absmax.flatten(), BLOCK, "nf4", (absmax.numel(), BLOCK), self.compute_dtype
        )
        return weight.view(-1, rows, columns)

    def apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[N, 2I] -> [N, I]: the activated gate times the up projection."""
        return _default_apply_gate(self, gate_up)

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """hidden_states [T, H], the router's experts and weights [T, k] -> [T, H]."""
        x = hidden_states.to(self.compute_dtype)
        return FrozenExperts.apply(x, top_k_weights, top_k_index, self).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, shapes={self.shapes}, compute_dtype={self.compute_dtype}"


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


@functools.cache
def _dynamic_map(device: torch.device) -> torch.Tensor:
    """The 8-bit code of the quantised scales. No buffer: the loader re-creates those that it finds in no checkpoint."""
    return bnb.create_dynamic_map().to(device)

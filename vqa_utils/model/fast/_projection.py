"""Multiply by several adapted 4-bit layers at once: W in NF4, and LoRA's A and B beside it.

One addmm computes LoRA's update and adds it to the base's output. Without gradients and dropout,
and with more rows than columns, it is added to the dense matrix instead. The 16-bit copies of A and
B are made once per optimizer step, not in each pass. The scales of adapted matrices are kept dense
(0.37 bits more per weight), because two of the three launches that dequantise a matrix are for
them.
"""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from bitsandbytes.functional import QuantState
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from torch import nn

from vqa_utils.ops.dequantize import Packed, dequantize_joined
from vqa_utils.ops.dropout import draw_seed, dropout


class AdapterUse(NamedTuple):
    """The adapter and dropout mask of one forward, repeated in its recomputation and backward."""

    adapter: str | None
    """None if adapters are off"""
    parameters: tuple[nn.Parameter, ...] = ()
    """each A [r, in], then each B [out, r]; none if adapters are off"""
    dropout: float = 0.0
    """the probability to drop a value of A's input"""
    seed: int | None = None
    """of the dropout's mask; None without dropout"""


class Projected(NamedTuple):
    """The output of `Projection.forward`, and the tensors that its backward needs."""

    y: torch.Tensor
    """[..., all out]"""
    dropped: torch.Tensor | None = None
    """[..., in], the input of A after dropout"""
    low: torch.Tensor | None = None
    """[T, R], A's output"""


class Copies(NamedTuple):
    """A and B of one adapter in the type of the products, made from fp32 parameters."""

    a: torch.Tensor
    """[R, in]"""
    b: torch.Tensor
    """[all out, R], scaled"""
    scaling: torch.Tensor
    """[1] in fp32, on the parameters' device"""
    made_from: tuple[nn.Parameter, ...]
    dtype: torch.dtype
    """of a and b"""
    factor: float
    """the scaling"""

    def are_of(self, use: AdapterUse, dtype: torch.dtype, factor: float) -> bool:
        """Tell whether these copies were made from this use's parameters, type and scaling.

        Values are not compared.
        """
        if self.dtype != dtype or self.factor != factor:
            return False
        has_as_many = len(self.made_from) == len(use.parameters)
        return has_as_many and all(map(operator.is_, self.made_from, use.parameters))


class Projection:
    """Layers with the same input, computed as one product: y = x W^T + bias + dropout(x) A^T B^T.

    W [all out, in] are their frozen matrices, one below the other, and A [R, in] their LoRA
    matrices A, with R the sum of their ranks r. B [all out, R] has their LoRA matrices B times the
    scaling on its diagonal and zeros elsewhere; for q, k and v:

                 r     r     r
              +-----+-----+-----+
        out q | B_q |  0  |  0  |
              +-----+-----+-----+
        out k |  0  | B_k |  0  |
              +-----+-----+-----+
        out v |  0  |  0  | B_v |
              +-----+-----+-----+

    W is dequantised from the layers' own tensors, which a lent base has once for all folds. Joined
    copies of them would be each fold's own, and what they replace in a base that is not lent would
    leave holes: 20 MiB a layer where H is 5,120.

    A and B are copied in the type of the products. Whatever writes into A or B drops the copies, by
    `forget_copies`. Another adapter, replaced parameters, another scaling and another type are seen
    when copies are asked for.
    """

    def __init__(self, layers: Sequence[LoraLinear4bit]):
        """Take up to three layers with the same input."""
        self.layers = tuple(layers)
        self.bases = [layer.get_base_layer() for layer in layers]
        self.widths = [base.out_features for base in self.bases]
        self.shape = (sum(self.widths), self.bases[0].in_features)  # of W
        self.copies: Copies | None = None
        self._read_base()

    def follow_base(self) -> None:
        """Read the base layers anew if one has another parameter, as after merging an adapter."""
        for base, weight in zip(self.bases, self.weights, strict=True):
            if base.weight is not weight:
                self._read_base()
                return

    def _read_base(self) -> None:
        """Refer to the base layers' packed weights and scales, and join their biases."""
        self.weights = [base.weight for base in self.bases]
        self.packed = []
        for weight in self.weights:
            state = weight.quant_state
            make_scales_dense(state)  # a merged weight is double-quantised again
            self.packed.append(Packed(weight.data.view(1, -1), state.absmax.view(1, -1)))
        self.bias = None  # or [all out]
        if self.bases[0].bias is not None:
            self.bias = torch.cat([base.bias for base in self.bases])

    def next_use(self) -> AdapterUse:
        """Decide how the next forward uses the layers: its adapter and its dropout mask."""
        first = self.layers[0]
        if first.disable_adapters:
            return AdapterUse(None)
        (adapter,) = first.active_adapters
        a = [layer.lora_A[adapter].weight for layer in self.layers]
        b = [layer.lora_B[adapter].weight for layer in self.layers]
        module = first.lora_dropout[adapter]
        if isinstance(module, nn.Dropout) and module.p and first.training:
            return AdapterUse(adapter, (*a, *b), module.p, draw_seed())
        return AdapterUse(adapter, (*a, *b))

    def forward(
        self, x: torch.Tensor, use: AdapterUse, *, save: bool = False, merge: bool = False
    ) -> Projected:
        """Compute the product for x [..., in], without autograd.

        Args:
            x: in the type of the products.
            use: of this forward.
            save: True to return the tensors for the backward too.
            merge: True if, without dropout, the update may be added to W, which is less work for
                many rows.
        """
        dense = self._dense(x.dtype)  # [all out, in]
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if use.adapter is None:
            return Projected(F.linear(x, dense, bias))
        copies = self._copies(use, x.dtype)
        in_width = copies.a.shape[1]
        # With more rows in x than columns in W, adding to W is less work than adding to y
        has_more_rows_than_columns = x.numel() > in_width**2
        if merge and use.seed is None and has_more_rows_than_columns:
            # In place, as `dense` was made for this call
            return Projected(F.linear(x, dense.addmm_(copies.b, copies.a), bias))
        dropped = x if use.seed is None else dropout(x, use.dropout, use.seed)  # [..., in]
        low = dropped.flatten(0, -2) @ copies.a.T  # [T, R]
        y = F.linear(x, dense, bias)  # [..., all out]
        y.view(-1, y.shape[-1]).addmm_(low, copies.b.T)
        return Projected(y, dropped, low) if save else Projected(y)

    def backward(
        self,
        grad: torch.Tensor,
        use: AdapterUse,
        dropped: torch.Tensor | None,
        low: torch.Tensor | None,
        *,
        needs_x: bool = True,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Compute the gradients of x [..., in] and of the parameters (in fp32) from that of y.

        Args:
            grad: [..., all out]
            use: of the forward.
            dropped: from the forward.
            low: from the forward.
            needs_x: otherwise the first result is None.
        """
        if use.adapter is None or dropped is None or low is None:
            return grad @ self._dense(grad.dtype), []
        copies = self._copies(use, low.dtype)
        grad = grad.flatten(0, -2)  # [T, all out]
        grad_low = grad @ copies.b  # [T, R]
        ranks = [layer.r[use.adapter] for layer in self.layers]
        grads_a = (grad_low.T @ dropped.flatten(0, -2)).float().split(ranks)  # [r, in] each
        # The fp32 scaling makes the result fp32
        grad_b = (grad.T @ low) * copies.scaling  # [all out, R]
        grads_b = []
        for layer, rows in enumerate(grad_b.split(self.widths)):
            grads_b.append(rows.split(ranks, dim=1)[layer])  # [out, r], a block of the diagonal
        grads = [*grads_a, *grads_b]
        if not needs_x:
            return None, grads
        grad_x = grad @ self._dense(low.dtype)  # [T, in]
        if use.seed is None:
            return grad_x.addmm_(grad_low, copies.a).view_as(dropped), grads
        grad_dropped = grad_low @ copies.a  # [T, in]
        grad_x = dropout(grad_dropped, use.dropout, use.seed, onto=grad_x)
        return grad_x.view_as(dropped), grads

    def _dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Dequantise W, [all out, in]."""
        return dequantize_joined(self.packed, dtype).view(self.shape)

    def _copies(self, use: AdapterUse, dtype: torch.dtype) -> Copies:
        """Return this use's A and B in `dtype`, made anew if they were dropped or are others."""
        factor = self.layers[0].scaling[use.adapter]
        if self.copies is not None and self.copies.are_of(use, dtype, factor):
            return self.copies
        held = [parameter.detach() for parameter in use.parameters]
        a = held[: len(self.layers)]  # [r, in] each
        b = held[len(self.layers) :]  # [out, r] each
        self.copies = Copies(
            torch.cat(a).to(dtype),
            (torch.block_diag(*b) * factor).to(dtype),
            a[0].new_tensor([factor]),
            use.parameters,
            dtype,
            factor,
        )
        return self.copies


def make_scales_dense(state: QuantState) -> None:
    """Undo double quantisation: the same numbers in fp32, [blocks]."""
    if not state.nested:
        return
    state.absmax = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    state.nested = False
    state.state2 = None
    state.offset = None

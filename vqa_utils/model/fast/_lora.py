"""LoRA beside 4-bit matrices with few launches and few bytes: PEFT's own layers, another forward.

PEFT copies the base's output, then adds the scaled update as a tensor of its own: three passes over the widest activation
of the layer. Here the update is added into the base's output by the product that makes it, and where nothing is dropped and
nothing learns, into the matrix itself. Layers that read the same input, as q, k and v do, are one product, share A's and one
dropout mask. The 16-bit copies of A and B are made once a step, not in each pass, and the scales of the adapted matrices are
kept dense (0.36 bits a weight more), since two of the three launches that dequantise a matrix are for them.
"""

import types
from collections.abc import Sequence
from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from bitsandbytes.functional import QuantState
from peft import PeftModel
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from torch import nn

from vqa_utils.nf4_format import BLOCK
from vqa_utils.ops.dequantize import Packed, dequantize
from vqa_utils.ops.dropout import draw_seed, dropout


def use_fast_lora(model: PeftModel) -> None:
    """Give the adapted 4-bit layers the forward below; others, and layers with PEFT's variants, keep PEFT's."""
    for module in model.modules():
        if (
            isinstance(module, LoraLinear4bit)
            and len(module.active_adapters) == 1
            and not module.lora_variant
        ):
            _make_scales_dense(module.get_base_layer().weight.quant_state)
            module.projections = {}
            module.forward = types.MethodType(_forward, module)


def project(layers: Sequence[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """The layers' outputs for the same x [..., in], side by side [..., all out]; in autocast's type where it is on."""
    projection = projection_of(layers)
    if projection is None:
        return torch.cat([layer(x) for layer in layers], -1)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if not torch.is_grad_enabled():
        return projection.forward(x, projection.draw_seed(), merge=True)[0]
    return _Project.apply(x, projection, projection.draw_seed(), *projection.weights)


def projection_of(layers: Sequence[nn.Module]) -> "Projection | None":
    """What multiplies by these layers at once; None where one has no lean LoRA, is merged, or they differ in their scaling."""
    first = layers[0]
    if not all(hasattr(layer, "projections") and not layer.merged for layer in layers):
        return None
    if (
        len({layer.disable_adapters for layer in layers}) > 1
        or len({tuple(layer.scaling.values()) for layer in layers}) > 1
    ):
        return None
    if len(layers) not in first.projections:
        first.projections[len(layers)] = Projection(layers)
    return first.projections[len(layers)]


def _make_scales_dense(state: QuantState) -> None:
    """The same numbers without double quantisation."""
    if state.nested:
        state.absmax = (
            bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        )
        state.nested, state.state2, state.offset = False, None, None


def _forward(self: LoraLinear4bit, x: torch.Tensor) -> torch.Tensor:
    return type(self).forward(self, x) if self.merged else project([self], x)


class Projection:
    """Layers with the same input: their frozen matrices W as one [all out, in], and their LoRA matrices A and B beside it."""

    def __init__(self, layers: Sequence[LoraLinear4bit]):
        """The layers' own weights become views of what is laid side by side here."""
        self.layers, (self.adapter,) = tuple(layers), layers[0].active_adapters
        bases = [layer.get_base_layer() for layer in layers]
        weights = [base.weight for base in bases]
        self.widths = [base.out_features for base in bases]
        self.shape = (sum(self.widths), bases[0].in_features)
        packed, absmax = (
            torch.cat([tensor.flatten() for tensor in tensors])
            if len(layers) > 1
            else tensors[0].flatten()
            for tensors in (
                [weight.data for weight in weights],
                [weight.quant_state.absmax for weight in weights],
            )
        )
        self.packed = Packed(packed[None], absmax[None])
        packed, absmax = (
            whole.split([width * self.shape[1] // share for width in self.widths])
            for whole, share in ((packed, 2), (absmax, BLOCK))
        )
        for weight, part, scales in zip(weights, packed, absmax, strict=True):
            weight.data, weight.quant_state.absmax = part.view(weight.shape), scales
        self.bias = torch.cat([base.bias for base in bases]) if bases[0].bias is not None else None
        self.adapters = [
            getattr(layer, name)[self.adapter]
            for name in ("lora_A", "lora_B")
            for layer in self.layers
        ]
        self.known: dict[str, Any] = {}

    @property
    def weights(self) -> list[nn.Parameter]:
        """Each A [r, in], then each B [out, r]; none where adapters are off."""
        return (
            [] if self.layers[0].disable_adapters else [adapter.weight for adapter in self.adapters]
        )

    @property
    def p(self) -> float:
        """Of the dropout in front of A."""
        module = self.layers[0].lora_dropout[self.adapter]
        return module.p if isinstance(module, nn.Dropout) else 0.0

    def draw_seed(self) -> int | None:
        """Of the dropout's mask; None where nothing is dropped."""
        drops = self.p and self.layers[0].training and not self.layers[0].disable_adapters
        return draw_seed() if drops else None

    def forward(
        self, x: torch.Tensor, seed: int | None, *, keep: bool = False, merge: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Compute x W^T + bias + s * dropped A^T B^T for x [..., in], no autograd.

        Args:
            keep: what the backward needs.
            merge: where nothing is dropped, the update may be added into W, which is less work for many rows.

        Returns:
            The sum [..., all out]; and where `keep`, for the backward, what A was given [..., in] and what it made of it [T, R].
        """
        dense, copies = self._dense(x.dtype), self._copies(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if copies is None:
            return F.linear(x, dense, bias), None, None
        a, b = copies
        if (
            merge and seed is None and x.numel() > a.shape[1] ** 2
        ):  # x has more rows than W columns: W's is the smaller sum
            return F.linear(x, dense.addmm_(b, a), bias), None, None
        dropped = x if seed is None else dropout(x, self.p, seed)
        low, y = dropped.flatten(0, -2) @ a.T, F.linear(x, dense, bias)
        y.view(-1, y.shape[-1]).addmm_(low, b.T)
        return y, dropped, low

    def backward(
        self,
        grad: torch.Tensor,
        dropped: torch.Tensor | None,
        low: torch.Tensor | None,
        seed: int | None,
        *,
        needs_x: bool = True,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """From the gradient [..., all out] of `forward`'s sum: x's, and each A's and B's, the last in fp32.

        Args:
            dropped, low: what `forward` kept.
        """
        if low is None:
            return grad @ self._dense(grad.dtype), []
        (a, b), grad = self._copies(low.dtype), grad.flatten(0, -2)
        grad_low = grad @ b
        ranks = [layer.r[self.adapter] for layer in self.layers]
        grad_a = (grad_low.T @ dropped.flatten(0, -2)).float().split(ranks)
        rows = ((grad.T @ low) * self.known["scaling"]).split(self.widths)
        grads = [*grad_a, *(row.split(ranks, dim=1)[layer] for layer, row in enumerate(rows))]
        if not needs_x:
            return None, grads
        grad_x = grad @ self._dense(low.dtype)
        if seed is None:
            return grad_x.addmm_(grad_low, a).view_as(dropped), grads
        return dropout(grad_low @ a, self.p, seed, onto=grad_x).view_as(dropped), grads

    def _dense(self, dtype: torch.dtype) -> torch.Tensor:
        (dense,) = dequantize([self.packed], None, dtype)
        return dense.view(self.shape)

    def _copies(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
        """All rows of A [R, in], and the scaled B as blocks [all out, R], zero elsewhere, in `dtype`; None where adapters are off.

        Made anew where an optimizer or a checkpoint has changed or replaced one (`callbacks.SeenSteps` sees to the former).
        """
        weights, scaling = self.weights, self.layers[0].scaling[self.adapter]
        if not weights:
            return None
        state = [dtype, scaling, *((weight._version, weight.data_ptr()) for weight in weights)]
        if self.known.get("state") != state:
            held = [
                weight.detach() for weight in weights
            ]  # while they are held, no other weight can have their addresses
            a, b = held[: len(self.layers)], held[len(self.layers) :]
            copies = torch.cat(a).to(dtype), (torch.block_diag(*b) * scaling).to(dtype)
            self.known.update(
                state=state, held=held, copies=copies, scaling=a[0].new_tensor([scaling])
            )
        return self.known["copies"]


class _Project(torch.autograd.Function):
    """`Projection.forward` with its gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, projection: Projection, seed: int | None, *weights: torch.Tensor
    ) -> torch.Tensor:
        y, dropped, low = projection.forward(x, seed, keep=True)
        ctx.save_for_backward(dropped, low)
        ctx.projection, ctx.seed = projection, seed
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_x, grads = ctx.projection.backward(
            grad, *ctx.saved_tensors, ctx.seed, needs_x=ctx.needs_input_grad[0]
        )
        return grad_x, None, None, *grads

"""LoRA beside 4-bit matrices with few launches and few bytes: PEFT's own layers, another forward.

PEFT copies the base's output, then adds the scaled update as a tensor of its own: three passes over the widest activation
of the layer. Here the update is added into the base's output by the product that makes it. Layers that read the same input,
as q, k and v do, share A's product and one dropout mask. The 16-bit copies of A and B are made once a step, not in each
pass, and the scales of the adapted matrices are kept dense (0.36 bits a weight more), since two of the three launches that
dequantise a matrix are for them.
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

from vqa_utils.kernels import Packed, dequantize
from vqa_utils.memory import BLOCK


def use_lean_lora(model: PeftModel) -> None:
    """Give the adapted 4-bit layers the forward below; others, and layers with PEFT's variants, keep PEFT's."""
    for module in model.modules():
        if isinstance(module, LoraLinear4bit) and len(module.active_adapters) == 1 and not module.lora_variant:
            _make_scales_dense(module.get_base_layer().weight.quant_state)
            module.copies, module.bases = {}, {}
            module.forward = types.MethodType(_forward, module)


def project(layers: Sequence[nn.Module], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each layer's output for the same x [..., in], in autocast's type where it is on."""
    lean = all(hasattr(layer, "copies") and not layer.disable_adapters and not layer.merged for layer in layers)
    if not lean or len({tuple(layer.scaling.values()) for layer in layers}) > 1:
        return tuple(layer(x) for layer in layers)
    return _project(layers, x)


def _make_scales_dense(state: QuantState) -> None:
    """The same numbers without double quantisation."""
    if state.nested:
        state.absmax = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        state.nested, state.state2, state.offset = False, None, None


def _forward(self: LoraLinear4bit, x: torch.Tensor) -> torch.Tensor:
    if self.disable_adapters or self.merged:
        return type(self).forward(self, x)
    return _project([self], x)[0]


def _project(layers: Sequence[LoraLinear4bit], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    (adapter,) = layers[0].active_adapters
    a, b = zip(*((layer.lora_A[adapter].weight, layer.lora_B[adapter].weight) for layer in layers), strict=True)
    bases = layers[0].bases
    if len(layers) not in bases:
        bases[len(layers)] = _Base([layer.get_base_layer() for layer in layers])
    copies = _copies(layers[0].copies, a, b, layers[0].scaling[adapter], x.dtype)
    dropped = layers[0].lora_dropout[adapter](x)
    return _FourBitLora.apply(x, dropped, bases[len(layers)], copies, layers[0].scaling[adapter], *a, *b)


class _Base:
    """The frozen matrices of layers with the same input as one [all out, in]: one launch makes it dense, one product takes it."""

    def __init__(self, layers: Sequence[nn.Module]):
        """The layers' own weights become views of what is laid side by side here."""
        weights = [layer.weight for layer in layers]
        self.widths = [layer.out_features for layer in layers]
        self.shape = (sum(self.widths), layers[0].in_features)
        packed, absmax = (
            torch.cat([tensor.flatten() for tensor in tensors]) if len(layers) > 1 else tensors[0].flatten()
            for tensors in ([weight.data for weight in weights], [weight.quant_state.absmax for weight in weights])
        )
        self.packed = Packed(packed[None], absmax[None])
        packed, absmax = (
            whole.split([width * self.shape[1] // share for width in self.widths])
            for whole, share in ((packed, 2), (absmax, BLOCK))
        )
        for weight, part, scales in zip(weights, packed, absmax, strict=True):
            weight.data, weight.quant_state.absmax = part.view(weight.shape), scales
        has_bias = layers[0].bias is not None
        self.bias = torch.cat([layer.bias for layer in layers]) if has_bias else None

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        (dense,) = dequantize([self.packed], None, dtype)
        return dense.view(self.shape)


def _copies(
    known: dict[str, Any], a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], scaling: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows of A [R, in], and the scaled B as blocks [all out, R], zero elsewhere, in `dtype`.

    Made anew where an optimizer or a checkpoint has changed or replaced one.
    """
    state = [dtype, scaling, *((weight._version, weight.data_ptr()) for weight in (*a, *b))]
    if known.get("state") != state:
        held = [weight.detach() for weight in (*a, *b)]  # while they are held, no other weight can have their addresses
        blocks = torch.block_diag(*held[len(a) :]) * scaling
        known.update(state=state, held=held, copies=(torch.cat(held[: len(a)]).to(dtype), blocks.to(dtype)))
    return known["copies"]


class _FourBitLora(torch.autograd.Function):
    """y_i = x W_i^T + bias_i + s * dropped A_i^T B_i^T, with the W_i in 4 bits and frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dropped: torch.Tensor, base: _Base, copies: tuple, scaling: float, *weights: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """For x, dropped [..., in]; the frozen matrices; what `_copies` makes; s; each A, then each B."""
        a, b = copies
        low = dropped.flatten(0, -2) @ a.T
        y = F.linear(x, base.dense(x.dtype), None if base.bias is None else base.bias.to(x.dtype))
        y.view(-1, y.shape[-1]).addmm_(low, b.T)
        ctx.save_for_backward(dropped, low)
        ctx.base, ctx.copies, ctx.scaling, ctx.ranks = base, copies, scaling, [a.shape[0] for a in weights[: len(base.widths)]]
        return y.split(base.widths, dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, dropped, and each A and B, the last in fp32."""
        (dropped, low), (a, b) = ctx.saved_tensors, ctx.copies
        grad = torch.cat([grad.flatten(0, -2) for grad in grads], 1) if len(grads) > 1 else grads[0].flatten(0, -2)
        grad_low = grad @ b
        grad_a = (grad_low.T @ dropped.flatten(0, -2)).float().split(ctx.ranks)
        rows = (grad.T @ low).float().mul_(ctx.scaling).split(ctx.base.widths)
        grad_b = [row.split(ctx.ranks, dim=1)[layer] for layer, row in enumerate(rows)]
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ ctx.base.dense(low.dtype)).view_as(dropped)
            grad_dropped = (grad_low @ a).view_as(dropped)
        return grad_x, grad_dropped, None, None, None, *grad_a, *grad_b

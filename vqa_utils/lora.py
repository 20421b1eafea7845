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


def use_lean_lora(model: PeftModel) -> None:
    """Give the adapted 4-bit layers the forward below; others, and layers with PEFT's variants, keep PEFT's."""
    for module in model.modules():
        if isinstance(module, LoraLinear4bit) and len(module.active_adapters) == 1 and not module.lora_variant:
            _make_scales_dense(module.get_base_layer().weight.quant_state)
            module.copies = {}
            module.forward = types.MethodType(_forward, module)


def project(layers: Sequence[nn.Module], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each layer's output for the same x [..., in], in autocast's type where it is on."""
    if not all(hasattr(layer, "copies") and not layer.disable_adapters and not layer.merged for layer in layers):
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
    scalings = [layer.scaling[adapter] for layer in layers]
    copies = _copies(layers[0].copies, a, b, scalings, x.dtype)
    dropped = layers[0].lora_dropout[adapter](x)
    return _FourBitLora.apply(x, dropped, [layer.get_base_layer() for layer in layers], copies, scalings, *a, *b)


def _copies(
    known: dict[str, Any],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    scalings: Sequence[float],
    dtype: torch.dtype,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """All rows of A, and each scaled B, in `dtype`; made anew where an optimizer or a checkpoint has changed or replaced one."""
    state = [dtype, *scalings, *((weight._version, weight.data_ptr()) for weight in (*a, *b))]
    if known.get("state") != state:
        held = [weight.detach() for weight in (*a, *b)]  # while they are held, no other weight can have their addresses
        scaled = [(weight * scale).to(dtype) for weight, scale in zip(held[len(a) :], scalings, strict=True)]
        known.update(state=state, held=held, copies=(torch.cat(held[: len(a)]).to(dtype), scaled))
    return known["copies"]


class _FourBitLora(torch.autograd.Function):
    """y_i = x W_i^T + bias_i + s_i * dropped A_i^T B_i^T, with the W_i in 4 bits and frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dropped: torch.Tensor, bases: list, copies: tuple, scalings: list, *weights: Any
    ) -> Any:
        """For x, dropped [..., in]; the base layers; A's rows [sum of r, in] and each s * B [out, r] in x's type; s; A and B."""
        a, b = copies
        low = dropped.flatten(0, -2) @ a.T
        ys = [F.linear(x, _dense(base, x.dtype), None if base.bias is None else base.bias.to(x.dtype)) for base in bases]
        for y, part, up in zip(ys, _parts(low, b), b, strict=True):
            y.view(-1, y.shape[-1]).addmm_(part, up.T)
        ctx.save_for_backward(dropped, low)
        ctx.bases, ctx.copies, ctx.scalings = bases, copies, scalings
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, dropped, and each A and B, the last in fp32."""
        (dropped, low), (a, b) = ctx.saved_tensors, ctx.copies
        rows, grad_low = [grad.flatten(0, -2) for grad in grads], torch.empty_like(low)
        for row, part, up in zip(rows, _parts(grad_low, b), b, strict=True):
            torch.mm(row, up, out=part)
        grad_a = (grad_low.T @ dropped.flatten(0, -2)).float().split([up.shape[1] for up in b])
        grad_b = [(row.T @ part).float().mul_(s) for row, part, s in zip(rows, _parts(low, b), ctx.scalings, strict=True)]
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = rows[0] @ _dense(ctx.bases[0], low.dtype)
            for row, base in zip(rows[1:], ctx.bases[1:], strict=True):
                grad_x.addmm_(row, _dense(base, low.dtype))
            grad_x, grad_dropped = grad_x.view_as(dropped), (grad_low @ a).view_as(dropped)
        return grad_x, grad_dropped, None, None, None, *grad_a, *grad_b


def _parts(low: torch.Tensor, b: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The columns [N, r] of each layer."""
    return low.split([up.shape[1] for up in b], dim=1)


def _dense(base: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The matrix [out, in]."""
    weight, state = base.weight, base.weight.quant_state
    (dense,) = dequantize([Packed(weight.data.view(1, -1), state.absmax.view(1, -1))], None, dtype)
    return dense.view(state.shape)

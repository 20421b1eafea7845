"""LoRA beside a 4-bit matrix with few launches and few bytes: PEFT's own layers, another forward.

PEFT copies the base's output, then adds the scaled update as a tensor of its own: three passes over the widest activation
of the layer. Here the update is added into the base's output by the product that makes it. The 16-bit copies of A and B are
made once a step, not in each pass, and the scales of the adapted matrices are kept dense (0.36 bits a weight more), since
two of the three launches that dequantise a matrix are for them.
"""

import types
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from peft import PeftModel
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit


def use_lean_lora(model: PeftModel) -> None:
    """Give the adapted 4-bit layers the forward below; others, and layers with PEFT's variants, keep PEFT's."""
    for module in model.modules():
        if isinstance(module, LoraLinear4bit) and len(module.active_adapters) == 1 and not module.lora_variant:
            _make_scales_dense(module.get_base_layer().weight.quant_state)
            module.copies = {}
            module.forward = types.MethodType(_forward, module)


def _make_scales_dense(state: QuantState) -> None:
    """The same numbers without double quantisation."""
    if state.nested:
        state.absmax = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        state.nested, state.state2, state.offset = False, None, None


def _forward(self: LoraLinear4bit, x: torch.Tensor) -> torch.Tensor:
    """From x [..., in] to [..., out], in autocast's type where it is on."""
    if self.disable_adapters or self.merged:
        return type(self).forward(self, x)
    (adapter,) = self.active_adapters
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
    scaling = self.scaling[adapter]
    copies = _copy(self.copies, "a", a, 1.0, x.dtype), _copy(self.copies, "b", b, scaling, x.dtype)
    return _FourBitLora.apply(x, self.lora_dropout[adapter](x), a, b, copies, self.get_base_layer(), scaling)


def _copy(known: dict[str, Any], name: str, weight: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """The scaled weight in `dtype`, made anew where an optimizer or a checkpoint has changed or replaced it."""
    state = (weight._version, weight.data_ptr(), scale, dtype)
    if known.get(name, (None,))[0] != state:
        held = weight.detach()  # while it is held, no other weight can have its address
        known[name] = state, held, (held * scale).to(dtype)
    return known[name][-1]


class _FourBitLora(torch.autograd.Function):
    """y = x W^T + b + s * dropped A^T B^T, with W in 4 bits and frozen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dropped: torch.Tensor, *weights: Any) -> torch.Tensor:
        """For x, dropped [..., in]; a [r, in] and b [out, r]; the pair of a and s * b in x's type; the base layer; s."""
        _, _, (a, b), ctx.base, ctx.scaling = weights
        y = ctx.base(x)
        low = dropped.flatten(0, -2) @ a.T
        y.view(-1, y.shape[-1]).addmm_(low, b.T)
        ctx.save_for_backward(dropped, low)
        ctx.copies = a, b
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, dropped, a and b, the last two in fp32."""
        (dropped, low), (a, b) = ctx.saved_tensors, ctx.copies
        rows = grad.flatten(0, -2)
        grad_low = rows @ b
        grad_a, grad_b = grad_low.T @ dropped.flatten(0, -2), (rows.T @ low).mul_(ctx.scaling)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            weight = ctx.base.weight
            dense = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).to(grad.dtype)
            grad_x, grad_dropped = (rows @ dense).view_as(dropped), (grad_low @ a).view_as(dropped)
        return grad_x, grad_dropped, grad_a.float(), grad_b.float(), None, None, None

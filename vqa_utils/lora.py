"""LoRA beside a 4-bit matrix with few launches and few bytes: PEFT's own layers, another forward.

PEFT copies the base's output, then adds the scaled update as a tensor of its own: three passes over the widest activation
of the layer. Here the update is added into the base's output by the product that makes it.
"""

import types
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit


def use_lean_lora(model: PeftModel) -> None:
    """Give the adapted 4-bit layers the forward below; others, and layers with PEFT's variants, keep PEFT's."""
    for module in model.modules():
        if isinstance(module, LoraLinear4bit) and len(module.active_adapters) == 1 and not module.lora_variant:
            module.forward = types.MethodType(_forward, module)


def _forward(self: LoraLinear4bit, x: torch.Tensor) -> torch.Tensor:
    """From x [..., in] to [..., out], in autocast's type where it is on."""
    if self.disable_adapters or self.merged:
        return type(self).forward(self, x)
    (adapter,) = self.active_adapters
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    dropped = self.lora_dropout[adapter](x)
    lora_a, lora_b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
    return _FourBitLora.apply(x, dropped, lora_a, lora_b, self.get_base_layer(), self.scaling[adapter])


class _FourBitLora(torch.autograd.Function):
    """y = x W^T + b + s * dropped A^T B^T, with W in 4 bits and frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dropped: torch.Tensor, a: torch.Tensor, b: torch.Tensor, base: Linear4bit, scaling: float
    ) -> torch.Tensor:
        """x, dropped [..., in]; a [r, in] and b [out, r] in fp32."""
        y = base(x)
        low = dropped.flatten(0, -2) @ a.to(x.dtype).T
        y.view(-1, y.shape[-1]).addmm_(low, b.to(x.dtype).T, alpha=scaling)
        ctx.save_for_backward(dropped, low, a, b)
        ctx.base, ctx.scaling = base, scaling
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dropped, low, a, b = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_low = (rows @ b.to(grad.dtype)).mul_(ctx.scaling)
        grad_a = (grad_low.T @ dropped.flatten(0, -2)).to(a.dtype)
        grad_b = (rows.T @ low).to(b.dtype).mul_(ctx.scaling)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            weight = ctx.base.weight
            dense = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).to(grad.dtype)
            grad_x = (rows @ dense).view_as(dropped)
            grad_dropped = (grad_low @ a.to(grad.dtype)).view_as(dropped)
        return grad_x, grad_dropped, grad_a, grad_b, None, None

"""fp16 that does not overflow: matrices in 16 bits, everything that sums over layers in 32.

A T4 has no bf16, and fp16 ends at 65,504. The products of a model trained in bf16 stay below that; what overflows is the
residual stream, which adds up all layers' outputs, and the gradient that flows back along it. So the stream, the norms
and the router are kept in fp32, and autocast takes the matrices' inputs down to fp16, one product at a time.
"""

from typing import Any

import torch
from torch import nn

START_SCALE = 2.0**8  # of the loss; the scaler's own 65,536 lets the first steps overflow
GROWTH_STEPS = 50  # finite steps before the scale doubles
STREAM_STARTS = ("language_model.embed_tokens", "visual.patch_embed")


def keep_stream_in_fp32(model: nn.Module) -> None:
    """Make the residual streams of a model in fp16, its norms and its router fp32; the model then needs autocast."""
    for name, module in model.named_modules():
        is_router = name.endswith(".mlp.gate")
        if is_router or "Norm" in type(module).__name__:
            module.float()
        if name.endswith(STREAM_STARTS):
            module.register_forward_hook(_to_fp32)
        if is_router:
            module.forward = torch.autocast(module.weight.device.type, enabled=False)(module.forward)


def grad_scaler() -> torch.amp.GradScaler:
    """Scales the loss up so that small gradients survive fp16; starts low and grows while the steps stay finite."""
    return torch.amp.GradScaler("cuda", init_scale=START_SCALE, growth_interval=GROWTH_STEPS)


def _to_fp32(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output.float()

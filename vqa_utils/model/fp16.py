"""fp16 that does not overflow: matrices in 16 bits, everything that sums over layers in 32.

A T4 has no bf16, and fp16 ends at 65,504. The products of a model trained in bf16 stay below that; what overflows is the
residual stream, which adds up all layers' outputs, and the gradient that flows back along it. So the stream, the norms
and the router are kept in fp32, and autocast takes the matrices' inputs down to fp16, one product at a time.
"""

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

START_SCALE = 2.0**8  # of the loss; the scaler's own 65,536 lets the first steps overflow
GROWTH_STEPS = 50  # finite steps before the scale doubles
STREAM_STARTS = ("language_model.embed_tokens", "visual.patch_embed")


def keep_residual_stream_in_fp32(model: nn.Module) -> None:
    """Make the residual streams of a model in fp16, its norms and its router fp32; the model then needs autocast.

    What a norm makes for fp16 products alone leaves it in fp16, and so does the rotary embedding: less to read and write,
    and no cast in front of each product.
    """
    for name, module in model.named_modules():
        is_router = name.endswith(".mlp.gate")
        is_norm = "Norm" in type(module).__name__
        if is_router or is_norm:
            module.float()
        if is_norm and hasattr(module, "variance_epsilon") and "Gated" not in type(module).__name__:
            module.weight_in_fp16 = module.weight.detach().half()
            feeds_router = name.endswith("post_attention_layernorm") and _has_router(
                model, name.rpartition(".")[0]
            )
            is_last = name.endswith("language_model.norm")
            module.forward = types.MethodType(
                _norm if feeds_router or is_last else _norm_in_fp16, module
            )
        if name.endswith(STREAM_STARTS):
            module.register_forward_hook(_to_fp32)
        if name.endswith("language_model.rotary_emb"):
            module.register_forward_hook(_pair_to_fp16)
        if is_router:
            module.forward = torch.autocast(module.weight.device.type, enabled=False)(
                module.forward
            )


def grad_scaler() -> torch.amp.GradScaler:
    """Scales the loss up so that small gradients survive fp16; starts low and grows while the steps stay finite."""
    return torch.amp.GradScaler("cuda", init_scale=START_SCALE, growth_interval=GROWTH_STEPS)


def _has_router(model: nn.Module, layer: str) -> bool:
    return hasattr(getattr(model.get_submodule(layer), "mlp", None), "gate")


def _norm(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The RMS norm of Qwen2 and Qwen3 in torch's one kernel, which sums in fp32; in the type of `x`."""
    with torch.autocast(x.device.type, enabled=False):
        weight = self.weight_in_fp16 if x.dtype == torch.float16 else self.weight
        return F.rms_norm(x, weight.shape, weight, self.variance_epsilon)


def _norm_in_fp16(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return _norm(self, x).to(torch.float16)


def _pair_to_fp16(
    module: nn.Module, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]
) -> tuple:
    return tuple(part.to(torch.float16) for part in output)


def _to_fp32(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output.float()

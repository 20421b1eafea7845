"""Compute in fp16 without overflow: products in 16 bits, everything that sums over layers in 32.

A T4 has no bf16, and fp16 ends at 65,504. The products of a model trained in bf16 stay below that.
The residual stream overflows, which adds up all layers' outputs, and so does the gradient that
flows back along it. So the residual stream, the norms and the router are kept in fp32, and
autocast takes the products' inputs down to fp16, one product at a time:

    fp32   x --+---------------------- + --+------------------------ + --> ...
               |                       |   |                         |
    fp16       norm -> attention ------+   norm -> experts ----------+
    fp32                                   norm -> router ---^
"""

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

START_SCALE = 2.0**8  # of the loss; the scaler's own 65,536 lets the first steps overflow
GROWTH_STEPS = 50  # finite steps before the scale doubles
STREAM_STARTS = ("language_model.embed_tokens", "visual.patch_embed")  # of a residual stream


def keep_residual_stream_in_fp32(model: nn.Module) -> None:
    """Make a fp16 model's residual streams, norms and router fp32; the model then needs autocast.

    A norm that feeds fp16 products alone returns fp16, and so does the rotary embedding: less to
    read and write, and no cast in front of each product.
    """
    for name, module in model.named_modules():
        is_router = name.endswith(".mlp.gate")
        is_norm = "Norm" in type(module).__name__
        if is_router or is_norm:
            module.float()
        if is_router:
            # Autocast would take its product down to fp16, whatever the weight's type
            without_autocast = torch.autocast(module.weight.device.type, enabled=False)
            module.forward = without_autocast(module.forward)
        if is_norm and _is_rms_norm(module):
            _use_fused_norm(module, returns_fp32=_is_read_in_fp32(name, model))
        if name.endswith(STREAM_STARTS):
            module.register_forward_hook(_to_fp32)
        if name.endswith("language_model.rotary_emb"):
            module.register_forward_hook(_pair_to_fp16)


def grad_scaler() -> torch.amp.GradScaler:
    """Make a scaler of the loss, so that small gradients survive fp16.

    It starts low and grows while the steps stay finite.
    """
    return torch.amp.GradScaler("cuda", init_scale=START_SCALE, growth_interval=GROWTH_STEPS)


def _is_rms_norm(norm: nn.Module) -> bool:
    """Tell whether a norm is Qwen's plain RMS norm; Qwen3.5's gated one computes something else."""
    return hasattr(norm, "variance_epsilon") and "Gated" not in type(norm).__name__


def _is_read_in_fp32(name: str, model: nn.Module) -> bool:
    """Tell whether a norm feeds a router, or is the language model's last."""
    if name.endswith("language_model.norm"):
        return True
    layer, _, last = name.rpartition(".")
    if last != "post_attention_layernorm":
        return False
    mlp = getattr(model.get_submodule(layer), "mlp", None)
    return hasattr(mlp, "gate")


def _use_fused_norm(norm: nn.Module, *, returns_fp32: bool) -> None:
    """Replace a norm's forward by torch's one kernel; a fp16 copy of frozen weights stays true."""
    # A plain attribute: `Module.to` does not move it, so the norm is on its final device by now
    norm.weight_in_fp16 = norm.weight.detach().half()
    norm.forward = types.MethodType(_norm if returns_fp32 else _norm_in_fp16, norm)


def _norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Compute the RMS norm of Qwen2 and Qwen3 in the type of x [..., width]; it sums in fp32."""
    with torch.autocast(x.device.type, enabled=False):
        # torch's fused norm wants one type for both; otherwise it takes several kernels
        weight = self.weight_in_fp16 if x.dtype == torch.float16 else self.weight
        return F.rms_norm(x, weight.shape, weight, self.variance_epsilon)


def _norm_in_fp16(self: Any, x: torch.Tensor) -> torch.Tensor:
    return _norm(self, x).to(torch.float16)


def _pair_to_fp16(
    module: nn.Module, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast cosines and sines [B, L, d]."""
    cos, sin = output
    return cos.to(torch.float16), sin.to(torch.float16)


def _to_fp32(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output.float()

"""The strongest peer for training over experts in 4 bits: experts4bit-qlora (0.58.1) with its kernels, grouped-nf4-gemm (0.51.0).

Its loader knows no Qwen3-VL, but what it trains is a function of packed weights, so it gets ours: both keep bitsandbytes' NF4 in
blocks of 64, an expert after the other, and nothing is copied. `experts` is what its `enable_fast_train(model, dgrad=True)` puts
in the place of a layer's forward, in bf16, the only type of its products, without LoRA on the experts; `fused` is what the same
call changes around it, as far as it fits this model: its fused q, k and v are for its own LoRA layers, its
fused rotary embedding is for bf16 alone.
"""

import contextlib
import math
from collections.abc import Iterator
from types import SimpleNamespace

import torch

from vqa_utils.model.nf4.experts import NF4Experts
from vqa_utils.nf4_format import BLOCK, GROUP
from vqa_utils.ops.dequantize import _dynamic_map


class Packed:
    """A layer's packed weights by the peer's names. The scales are made dense at each use, as its own double-quantised are."""

    has_gate, compute_dtype = True, torch.bfloat16

    def __init__(self, experts: NF4Experts):
        self.num_experts, self.act_fn, self.experts = experts.num_experts, experts.act_fn, experts
        self._gate_up_shape, self._down_shape = (
            experts.shapes["gate_up_proj"],
            experts.shapes["down_proj"],
        )
        self.gate_up_proj, self.down_proj = experts.gate_up_proj, experts.down_proj

    def scales(self, name: str) -> torch.Tensor:
        absmax, scale, offset = (
            getattr(self.experts, f"{kind}_{name}") for kind in ("absmax", "scale", "offset")
        )
        dense = torch.ops.bitsandbytes.dequantize_blockwise.default(
            absmax, scale.flatten(), _dynamic_map(absmax.device), GROUP, torch.float32
        )
        return dense.flatten(1)[:, : math.prod(self.experts.shapes[name]) // BLOCK].add_(offset)

    gate_up_absmax = property(lambda self: self.scales("gate_up_proj"))
    down_absmax = property(lambda self: self.scales("down_proj"))


def experts(
    self: NF4Experts, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """For scoring too: where a grouped product of torch's own is faster, as on an H100, its kernels for inference lack it."""
    from experts4bit_qlora.engines.fast import fused_experts_train_forward

    no_lora = dict.fromkeys(("gate_up_lora_A", "gate_up_lora_B", "down_lora_A", "down_lora_B"))
    module = SimpleNamespace(base=Packed(self), scaling=1.0, _e4b_dgrad=True, **no_lora)
    with torch.autocast(x.device.type, enabled=False):
        return fused_experts_train_forward(module, x, index, weights)


@contextlib.contextmanager
def fused(model: torch.nn.Module) -> Iterator[None]:
    """Its RMSNorm and its choice of checkpoint, which is the reentrant one."""
    from experts4bit_qlora.engines import ckpt_offload, rmsnorm_train

    rmsnorm_train.enable_fused_rmsnorm_train(model, strict=False)
    model.disable_input_require_grads()  # as the next line asks for it once more
    ckpt_offload.enable_checkpoint_offload(model, explicit=False, mode="reentrant")
    yield
    ckpt_offload.disable_checkpoint_offload(model)
    for norm in model.modules():
        if vars(norm).pop("_e4b_rmsnorm_train", False):
            del norm.forward


def missing() -> str:
    """Why it cannot run here; empty where it can."""
    try:
        from experts4bit_qlora.engines import fast  # noqa: F401
        from nf4_route import route_for
    except ImportError as error:
        return f"not installed ({error})"
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    route, reason = route_for(capability, has_grouped_mm=hasattr(torch, "_grouped_mm"))
    return "" if route else reason


def calls() -> dict[str, object]:
    """How often each of its ways was taken so far: on an H100 `fwd` and `grouped_mm`, or its fast path did not run."""
    import nf4_qlora
    import nf4_route
    from experts4bit_qlora.engines import rmsnorm_train

    return {
        **nf4_route.ROUTE_STATS,
        "backward": {**nf4_qlora.DGRAD_STATS},
        "rmsnorm": {**rmsnorm_train.RMSNORM_TRAIN_STATS},
    }

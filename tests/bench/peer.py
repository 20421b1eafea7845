"""The strongest peer in training over 4-bit experts: experts4bit-qlora with its kernels.

Versions: experts4bit-qlora 0.58.1 and grouped-nf4-gemm 0.51.0.

Its loader knows no Qwen3-VL, but what it trains is a function of packed weights, so it gets ours:
both keep bitsandbytes' NF4 in blocks of 64, one expert after the other, and nothing is copied.

`experts` is the forward that its `enable_fast_train(model, dgrad=True)` gives a layer, in bf16 (the
only type of its products) and without LoRA on the experts. `fused` is what the same call changes
around it, as far as it fits this model: its fused q, k and v are for its own LoRA layers, and its
fused rotary embedding is for bf16 alone.
"""

import contextlib
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from vqa_utils.model.nf4.experts import NF4Experts
from vqa_utils.nf4_format import BLOCK, GROUP
from vqa_utils.ops.dequantize import _dynamic_map


class Packed:
    """A layer's packed weights by the peer's names.

    The double-quantised scales are made dense at each use, as its own are.
    """

    has_gate = True
    compute_dtype = torch.bfloat16

    def __init__(self, experts: NF4Experts):
        self.experts = experts
        self.num_experts = experts.num_experts
        self.act_fn = experts.act_fn
        self.gate_up_proj = experts.gate_up_proj
        self.down_proj = experts.down_proj
        self._gate_up_shape = experts.shapes["gate_up_proj"]
        self._down_shape = experts.shapes["down_proj"]

    @property
    def gate_up_absmax(self) -> torch.Tensor:
        return self.scales("gate_up_proj")

    @property
    def down_absmax(self) -> torch.Tensor:
        return self.scales("down_proj")

    def scales(self, name: str) -> torch.Tensor:
        """Dequantise the scales of a projection's blocks, [experts, blocks] in fp32."""
        absmax = getattr(self.experts, f"absmax_{name}")
        scale = getattr(self.experts, f"scale_{name}")
        offset = getattr(self.experts, f"offset_{name}")
        dense = torch.ops.bitsandbytes.dequantize_blockwise.default(
            absmax, scale.flatten(), _dynamic_map(absmax.device), GROUP, torch.float32
        )
        blocks = math.prod(self.experts.shapes[name]) // BLOCK  # of an expert; padding follows
        return dense.flatten(1)[:, :blocks].add_(offset)


def experts(
    self: NF4Experts, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Forward by the peer's kernels for training: [tokens, hidden].

    For scoring too: with a fast grouped product of torch's own, as on an H100, its kernels for
    inference lack it.
    """
    from experts4bit_qlora.engines.fast import fused_experts_train_forward

    module = SimpleNamespace(
        base=Packed(self),
        scaling=1.0,
        _e4b_dgrad=True,
        gate_up_lora_A=None,
        gate_up_lora_B=None,
        down_lora_A=None,
        down_lora_B=None,
    )
    with torch.autocast(x.device.type, enabled=False):
        return fused_experts_train_forward(module, x, index, weights)


@contextlib.contextmanager
def fused(model: torch.nn.Module) -> Iterator[None]:
    """Give the model the peer's RMSNorm and its reentrant checkpoint while this is open."""
    from experts4bit_qlora.engines import ckpt_offload, rmsnorm_train

    rmsnorm_train.enable_fused_rmsnorm_train(model, strict=False)
    model.disable_input_require_grads()  # the next line asks for it once more
    ckpt_offload.enable_checkpoint_offload(model, explicit=False, mode="reentrant")
    yield
    ckpt_offload.disable_checkpoint_offload(model)
    for norm in model.modules():
        if vars(norm).pop("_e4b_rmsnorm_train", False):
            del norm.forward


def missing() -> str:
    """Say why the peer cannot run here; empty if it can."""
    try:
        from experts4bit_qlora.engines import fast  # noqa: F401
        from nf4_route import route_for
    except ImportError as error:
        return f"not installed ({error})"
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    route, reason = route_for(capability, has_grouped_mm=hasattr(torch, "_grouped_mm"))
    return "" if route else reason


def calls() -> dict[str, Any]:
    """Count the peer's calls by route so far.

    On an H100 expect `fwd` and `grouped_mm`, or its fast path did not run.
    """
    import nf4_qlora
    import nf4_route
    from experts4bit_qlora.engines import rmsnorm_train

    return {
        **nf4_route.ROUTE_STATS,
        "backward": {**nf4_qlora.DGRAD_STATS},
        "rmsnorm": {**rmsnorm_train.RMSNORM_TRAIN_STATS},
    }

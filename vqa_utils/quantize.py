"""NF4 for whole models: bitsandbytes' 4-bit linear layers, and fused mixture-of-experts weights beside them.

transformers keeps the experts of a layer as two 3-D parameters. bitsandbytes replaces `nn.Linear` alone, so with its
own config they stay in 16 bits without a word: 28.99 of the 31.07 billion parameters of Qwen3-VL-30B-A3B. This module
plugs into transformers' own extension points and quantises them too, one parameter at a time while it is read.
"""

import functools
import math
from typing import Any

import bitsandbytes.functional as bnb
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.integrations.moe import _default_apply_gate
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationMethod

from vqa_utils.experts import EVERY_EXPERT, FrozenExperts
from vqa_utils.memory import EXPERTS_AT_ONCE

METHOD = "nf4_with_experts"
PROJECTIONS = ("gate_up_proj", "down_proj")
BLOCK = 64  # weights that share one scale (bitsandbytes' default)
GROUP = 256  # scales that share one second-level scale (fixed in bitsandbytes)
KEPT_IN_16_BITS = ("model.visual", "lm_head")  # naming any replaces transformers' own list, so the head is named too


class NF4Experts(nn.Module):
    """A layer's frozen experts: `gate_up_proj` [E, 2I, H] and `down_proj` [E, H, I] as packed NF4.

    Each expert is one bitsandbytes NF4 tensor, so the numbers are those of `bnb.functional.quantize_4bit(weight[e])`.
    """

    at_once = EXPERTS_AT_ONCE

    def __init__(self, experts: nn.Module, compute_dtype: torch.dtype, double_quant: bool):
        super().__init__()
        self.num_experts, self.act_fn, self.compute_dtype = experts.num_experts, experts.act_fn, compute_dtype
        self.double_quant, self.shapes = double_quant, {}
        for name in PROJECTIONS:
            weight = getattr(experts, name)
            count, rows, columns = weight.shape
            if rows * columns % BLOCK:
                raise ValueError(f"{name}: expected experts of a multiple of {BLOCK} weights, found {rows} x {columns}")
            self.shapes[name] = (rows, columns)
            # The parameter keeps its 16-bit shape until it is quantised: the loader's transpose and device planner read it
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))
            for suffix, (dtype, shape) in self._statistics(rows * columns // BLOCK).items():
                self.register_buffer(name + suffix, torch.empty(count, *shape, dtype=dtype, device="meta"))

    def _statistics(self, blocks: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of what is kept beside an expert's packed weights, by name suffix.

        (A name such as `gate_up_proj.absmax` would match the loader's pattern for the weight itself.)
        """
        if not self.double_quant:
            return {"_absmax": (torch.float32, (blocks,))}
        groups = math.ceil(blocks / GROUP)
        return {
            "_absmax": (torch.uint8, (groups, GROUP)),  # whole groups, so that all experts dequantise in one call
            "_scale": (torch.float32, (groups,)),
            "_offset": (torch.float32, (1,)),
        }

    @torch.no_grad()
    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """[E, rows, columns] -> the packed weights [E, rows * columns / 2] and their statistics, by name suffix."""
        parts: dict[str, list[torch.Tensor]] = {}
        for expert in weight:
            packed, state = bnb.quantize_4bit(
                expert.contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=self.double_quant
            )
            found = {"": packed.flatten(), "_absmax": state.absmax}
            if self.double_quant:
                absmax = state.absmax.new_zeros(len(state.state2.absmax) * GROUP)
                absmax[: len(state.absmax)] = state.absmax
                found |= {"_absmax": absmax.view(-1, GROUP), "_scale": state.state2.absmax, "_offset": state.offset.view(1)}
            for suffix, tensor in found.items():
                parts.setdefault(suffix, []).append(tensor)
        return {suffix: torch.stack(tensors) for suffix, tensors in parts.items()}

    def dense(self, name: str, experts: slice = EVERY_EXPERT) -> torch.Tensor:
        """One projection of some experts, [n, rows, columns] in the compute type; three kernels for any n."""
        rows, columns = self.shapes[name]
        packed, absmax = getattr(self, name)[experts], getattr(self, f"{name}_absmax")[experts]
        if self.double_quant:
            absmax = torch.ops.bitsandbytes.dequantize_blockwise.default(
                absmax, getattr(self, f"{name}_scale")[experts].flatten(), _dynamic_map(absmax.device), GROUP, torch.float32
            )
            absmax = absmax.flatten(1)[:, : rows * columns // BLOCK] + getattr(self, f"{name}_offset")[experts]
        # The operator itself, as bnb.dequantize_4bit transposes a tensor whose first size is 1; in rows of one block, as
        # bitsandbytes' CPU kernel (0.50.2) starts its blocks anew at each row and is wrong where columns % 64 != 0
        weight = torch.ops.bitsandbytes.dequantize_4bit.default(
            packed.flatten(), absmax.flatten(), BLOCK, "nf4", (absmax.numel(), BLOCK), self.compute_dtype
        )
        return weight.view(-1, rows, columns)

    def apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[N, 2I] -> [N, I]: the activated gate times the up projection."""
        return _default_apply_gate(self, gate_up)

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """hidden_states [T, H], the router's experts and weights [T, k] -> [T, H]."""
        x = hidden_states.to(self.compute_dtype)
        return FrozenExperts.apply(x, top_k_weights, top_k_index, self).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, shapes={self.shapes}, compute_dtype={self.compute_dtype}"


class _QuantizeOne(Bnb4bitQuantize):
    """Gets one parameter at a time: fused experts become several tensors, everything else is bitsandbytes' own."""

    def convert(self, input_dict: dict[str, Any], model: nn.Module | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        result = {}
        for name, value in input_dict.items():
            module, _ = get_module_from_name(model, name)
            if isinstance(module, NF4Experts):
                value = value[0] if isinstance(value, list) else value
                result |= {name + suffix: tensor for suffix, tensor in module.quantize(value).items()}
                module._is_hf_initialized = True
            else:
                result |= super().convert({name: value}, model=model, **kwargs)
        return result


@register_quantization_config(METHOD)
class NF4Config(BitsAndBytesConfig):
    """bitsandbytes' NF4 settings under a method of our own, which selects `NF4Quantizer`."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", **kwargs})
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        """Without `load_in_4bit`, which would send a reload to the stock quantizer."""
        return {key: value for key, value in super().to_dict().items() if key not in ("load_in_4bit", "_load_in_4bit")}


@register_quantizer(METHOD)
class NF4Quantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' 4-bit quantizer that takes the fused experts along."""

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        super()._process_model_before_weight_loading(model, **kwargs)
        model.quantization_method = QuantizationMethod.BITS_AND_BYTES  # keeps `model.to(dtype)` refused
        config = self.quantization_config
        for name, module in list(model.named_modules()):
            if _is_fused_experts(module) and should_convert_module(name, self.modules_to_not_convert):
                experts = NF4Experts(module, config.bnb_4bit_compute_dtype, config.bnb_4bit_use_double_quant)
                model.set_submodule(name, experts)

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        module, name = get_module_from_name(model, param_name)
        if isinstance(module, NF4Experts):
            return name in PROJECTIONS
        return super().param_needs_quantization(model, param_name, **kwargs)

    def get_quantize_ops(self) -> _QuantizeOne:
        return _QuantizeOne(self)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        model = super()._process_model_after_weight_loading(model, **kwargs)
        for module in model.modules():
            if isinstance(module, Linear4bit):
                # On a CPU with AVX512-BF16, the first forward without gradients repacks the weight for a kernel that has
                # no autograd, and training that follows an evaluation goes on with wrong gradients (0.50.2)
                module.support_avx512bf16_for_cpu = False
        return model


def nf4_config(compute_dtype: torch.dtype, double_quant: bool) -> NF4Config:
    """Quantise the language model's linear layers and experts; the vision tower and the head stay in 16 bits."""
    return NF4Config(
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
        llm_int8_skip_modules=list(KEPT_IN_16_BITS),
    )


@functools.cache
def _dynamic_map(device: torch.device) -> torch.Tensor:
    """The 8-bit code of the quantised scales. No buffer: the loader re-creates those that it finds in no checkpoint."""
    return bnb.create_dynamic_map().to(device)


def _is_fused_experts(module: nn.Module) -> bool:
    """Modules behind transformers' experts interface in its default layout: [gate; up] rows, no bias, not transposed."""
    flags = ("has_gate", "is_concatenated", "has_bias", "is_transposed")
    layout = [getattr(module, flag, None) for flag in flags] == [True, True, False, False]
    plain = not getattr(module, "has_post_expert_norm", False)
    return layout and plain and type(module)._apply_gate is _default_apply_gate

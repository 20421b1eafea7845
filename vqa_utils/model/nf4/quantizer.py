"""NF4 for whole models: bitsandbytes' 4-bit linear layers, and fused mixture-of-experts weights beside them.

transformers keeps the experts of a layer as two 3-D parameters. bitsandbytes replaces `nn.Linear` alone, so with its
own config they stay in 16 bits without a word: 28.99 of the 31.07 billion parameters of Qwen3-VL-30B-A3B. This module
plugs into transformers' own extension points and quantises them too, one parameter at a time while it is read.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from packaging.version import Version
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.integrations.moe import _default_apply_gate
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationMethod

from vqa_utils.model.nf4._offloading import ExpertOffloader
from vqa_utils.model.nf4.experts import PROJECTIONS, NF4Experts

METHOD = "nf4_with_experts"
KEPT_IN_16_BITS = (
    "model.visual",
    "lm_head",
)  # naming any replaces transformers' own list, so the head is named too


class _QuantizeOne(Bnb4bitQuantize):
    """Gets one parameter at a time: fused experts become several tensors, everything else is bitsandbytes' own."""

    def convert(
        self, input_dict: dict[str, Any], model: nn.Module | None = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        result = {}
        for name, value in input_dict.items():
            module, _ = get_module_from_name(model, name)
            if isinstance(module, NF4Experts):
                value = value[0] if isinstance(value, list) else value
                if _was_left_transposed(model, value):
                    value = value.mT
                owner, _, projection = name.rpartition(".")
                result |= {
                    f"{owner}.{prefix}{projection}": tensor
                    for prefix, tensor in module.quantize(value).items()
                }
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
        return {
            key: value
            for key, value in super().to_dict().items()
            if key not in ("load_in_4bit", "_load_in_4bit")
        }


@register_quantizer(METHOD)
class NF4Quantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' 4-bit quantizer that takes the fused experts along."""

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        super()._process_model_before_weight_loading(model, **kwargs)
        model.quantization_method = (
            QuantizationMethod.BITS_AND_BYTES
        )  # keeps `model.to(dtype)` refused
        config = self.quantization_config
        for name, module in list(model.named_modules()):
            if _is_fused_experts(module) and should_convert_module(
                name, self.modules_to_not_convert
            ):
                experts = NF4Experts(
                    module,
                    config.bnb_4bit_compute_dtype,
                    config.bnb_4bit_use_double_quant,
                    packed=self.pre_quantized,
                    streamed=name.startswith(tuple(f"{layer}." for layer in _streamed.get())),
                )
                model.set_submodule(name, experts)

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        module, name = get_module_from_name(model, param_name)
        if isinstance(module, NF4Experts):
            return name in PROJECTIONS and not self.pre_quantized
        return super().param_needs_quantization(model, param_name, **kwargs)

    def param_element_size(self, model: nn.Module, param_name: str, param: torch.Tensor) -> float:
        """Bytes an element for the loader, which reserves a GPU's memory at once: none for what goes to the host."""
        module, _ = get_module_from_name(model, param_name)
        if isinstance(module, NF4Experts) and module.host is not None:
            return 0
        return super().param_element_size(model, param_name, param)

    def get_quantize_ops(self) -> _QuantizeOne:
        return _QuantizeOne(self)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        model = super()._process_model_after_weight_loading(model, **kwargs)
        for module in model.modules():
            if isinstance(module, Linear4bit):
                # On a CPU with AVX512-BF16, the first forward without gradients repacks the weight for a kernel that has
                # no autograd, and training that follows an evaluation goes on with wrong gradients (0.50.2)
                module.support_avx512bf16_for_cpu = False
        _join_streams(
            [
                module
                for module in model.modules()
                if isinstance(module, NF4Experts) and module.host is not None
            ]
        )
        return model


_streamed: ContextVar[tuple[str, ...]] = ContextVar("streamed layers", default=())


@contextmanager
def offloading(layers: Collection[str]) -> Iterator[None]:
    """While a model is loaded: keep the experts of these decoder layers in host memory."""
    token = _streamed.set(tuple(layers))
    try:
        yield
    finally:
        _streamed.reset(token)


def _join_streams(streamed: list[NF4Experts]) -> None:
    """One stream for all layers of a GPU, in their order."""
    for device in {module.gate_up_proj.device for module in streamed}:
        there = [module for module in streamed if module.gate_up_proj.device == device]
        stream = ExpertOffloader([module.host for module in there], device)
        for module in there:
            module.stream = stream


def nf4_config(compute_dtype: torch.dtype, double_quant: bool) -> NF4Config:
    """Quantise the language model's linear layers and experts; the vision tower and the head stay in 16 bits."""
    return NF4Config(
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
        llm_int8_skip_modules=list(KEPT_IN_16_BITS),
    )


def _was_left_transposed(model: nn.Module, experts: torch.Tensor) -> bool:
    """Whether the loader could not see that the checkpoint has these experts as [E, in, out].

    It transposes where the shape is another, so square experts of Qwen3-VL's official layout pass as they are. That layout
    was written by transformers 4; what version 5 saves is in the model's own.
    """
    config, square = model.config, experts.shape[1] == experts.shape[2]
    return (
        square
        and config.model_type == "qwen3_vl_moe"
        and Version(config.transformers_version or "4").major < 5
    )


def _is_fused_experts(module: nn.Module) -> bool:
    """Modules behind transformers' experts interface in its default layout: [gate; up] rows, no bias, not transposed."""
    flags = ("has_gate", "is_concatenated", "has_bias", "is_transposed")
    layout = [getattr(module, flag, None) for flag in flags] == [True, True, False, False]
    plain = not getattr(module, "has_post_expert_norm", False)
    return layout and plain and type(module)._apply_gate is _default_apply_gate

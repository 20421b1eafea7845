"""Quantise whole models to NF4: bitsandbytes' 4-bit linear layers, and fused experts beside them.

transformers keeps the experts of a layer as two 3-D parameters. bitsandbytes replaces `nn.Linear`
alone, so with its own config they stay in 16 bits without a word: 28.99 of the 31.07 billion
parameters of Qwen3-VL-30B-A3B. This module plugs into transformers' own extension points and
quantises them too, one parameter at a time while it is read:

    NF4Config       names the method        -> transformers picks NF4Quantizer by it
    NF4Quantizer    before loading          -> each module of fused experts becomes an NF4Experts
    _QuantizeOne    for each parameter read -> a 16-bit stack becomes packed weights, statistics
    NF4Quantizer    after loading           -> offloaded layers of a GPU share its buffers
"""

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
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
from vqa_utils.nf4_format import METHOD
from vqa_utils.planning.shapes import VISION

# Naming any module replaces transformers' own list, so the head is named too
KEPT_IN_16_BITS = (VISION, "lm_head")
IN_A_STOCK_CONFIG = ("load_in_4bit", "_load_in_4bit")


class _QuantizeOne(Bnb4bitQuantize):
    """Convert a parameter: fused experts become several tensors, the rest is bitsandbytes'."""

    def convert(
        self, input_dict: dict[str, Any], model: nn.Module | None = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        result: dict[str, torch.Tensor] = {}
        for name, value in input_dict.items():
            module, _ = get_module_from_name(model, name)
            if isinstance(module, NF4Experts):
                weight = value[0] if isinstance(value, list) else value  # [E, rows, columns]
                result |= _quantized(name, weight, module, model)
            else:
                result |= super().convert({name: value}, model=model, **kwargs)
        return result


def _quantized(
    name: str, weight: torch.Tensor, module: NF4Experts, model: Any
) -> dict[str, torch.Tensor]:
    """Pack the parameter `name`; return packed weights and statistics by name in the model."""
    if _was_left_transposed(model, weight):
        weight = weight.mT
    owner, _, projection = name.rpartition(".")
    tensors = {}
    for prefix, tensor in module.quantize(weight).items():
        tensors[f"{owner}.{prefix}{projection}"] = _on_disk(tensor)
    module._is_hf_initialized = True  # so that transformers does not fill it
    return tensors


@register_quantization_config(METHOD)
class NF4Config(BitsAndBytesConfig):
    """bitsandbytes' NF4 settings under a method of our own, which names `NF4Quantizer`."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", **kwargs})
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        """Leave out `load_in_4bit`, which would send a reload to the stock quantizer."""
        settings = super().to_dict()
        return {key: value for key, value in settings.items() if key not in IN_A_STOCK_CONFIG}


@register_quantizer(METHOD)
class NF4Quantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' 4-bit quantizer that takes the fused experts along."""

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        tower = _tower.get()
        if tower is not None:
            model.set_submodule(VISION, tower)
        super()._process_model_before_weight_loading(model, **kwargs)
        # Keeps `model.to(dtype)` refused
        model.quantization_method = QuantizationMethod.BITS_AND_BYTES
        # With the dot, as layers.1 is a prefix of layers.10
        offloaded = tuple(f"{layer}." for layer in _offloaded_layers.get())
        for name, module in list(model.named_modules()):
            is_converted = should_convert_module(name, self.modules_to_not_convert)
            if is_converted and _is_fused_experts(module):
                experts = NF4Experts(
                    module,
                    self.quantization_config.bnb_4bit_compute_dtype,
                    self.quantization_config.bnb_4bit_use_double_quant,
                    packed=self.pre_quantized,
                    offloaded=name.startswith(offloaded),
                )
                model.set_submodule(name, experts)

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Tell whether the loader hands a parameter to `_QuantizeOne`."""
        module, name = get_module_from_name(model, param_name)
        if isinstance(module, NF4Experts):
            return name in PROJECTIONS and not self.pre_quantized
        return super().param_needs_quantization(model, param_name, **kwargs)

    def param_element_size(self, model: nn.Module, param_name: str, param: torch.Tensor) -> float:
        """Return bytes per element, for the loader's reserve on a GPU.

        0 for offloaded experts, and for all that is borrowed.
        """
        module, _ = get_module_from_name(model, param_name)
        is_offloaded = isinstance(module, NF4Experts) and module.host is not None
        if is_offloaded or _borrows.get():
            return 0
        return super().param_element_size(model, param_name, param)

    def get_quantize_ops(self) -> _QuantizeOne:
        return _QuantizeOne(self)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        model = super()._process_model_after_weight_loading(model, **kwargs)
        offloaded = []
        for module in model.modules():
            if isinstance(module, Linear4bit):
                # On a CPU with AVX512-BF16, the first forward without gradients repacks the weight
                # for a kernel that has no autograd, and training that follows an evaluation goes
                # on with wrong gradients (0.50.2)
                module.support_avx512bf16_for_cpu = False
            if isinstance(module, NF4Experts) and module.host is not None:
                offloaded.append(module)
        _share_buffers(offloaded)
        return model


# from_pretrained makes the quantizer itself and hands no argument on
_offloaded_layers: ContextVar[tuple[str, ...]] = ContextVar("offloaded layers", default=())


@contextmanager
def offloading(layers: Collection[str]) -> Iterator[None]:
    """Keep these decoder layers' experts in host memory, for a model that is loaded meanwhile."""
    token = _offloaded_layers.set(tuple(layers))
    try:
        yield
    finally:
        _offloaded_layers.reset(token)


# As above: whether the weights are in memory that the process maps, and what is no weight there
_borrows: ContextVar[bool] = ContextVar("weights are borrowed", default=False)
_tower: ContextVar[nn.Module | None] = ContextVar("in place of the vision tower", default=None)


@contextmanager
def borrowing(tower: nn.Module | None) -> Iterator[None]:
    """Reserve no memory for the weights of a model that is loaded meanwhile: they are there.

    Args:
        tower: takes the place of the vision tower, if its weights are not.
    """
    tokens = _borrows.set(True), _tower.set(tower)
    try:
        yield
    finally:
        _borrows.reset(tokens[0])
        _tower.reset(tokens[1])


# As above: a folder for what is quantised
_disk: ContextVar[Path | None] = ContextVar("a folder for packed weights", default=None)


@contextmanager
def packing_on(folder: Path) -> Iterator[None]:
    """Keep packed experts in files of a folder, for a model that is loaded on a CPU meanwhile.

    The system drops their pages where memory is short.
    """
    token = _disk.set(folder)
    try:
        yield
    finally:
        _disk.reset(token)


def _on_disk(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor, or its copy in a file, by `packing_on`."""
    folder = _disk.get()
    if folder is None:
        return tensor
    handle, name = tempfile.mkstemp(dir=folder)
    os.close(handle)
    mapped = torch.from_file(name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    return mapped.copy_(tensor.flatten()).view(tensor.shape)


def _share_buffers(offloaded: list[NF4Experts]) -> None:
    """Give the offloaded layers of each GPU one offloader, in the layers' order."""
    for device in {module.gate_up_proj.device for module in offloaded}:
        # The stand-in's device is the GPU that computes; the experts are in host memory
        modules = [module for module in offloaded if module.gate_up_proj.device == device]
        layers = [module.host for module in modules if module.host is not None]
        offloader = ExpertOffloader(layers, device)
        for module in modules:
            module.offloader = offloader


def nf4_config(compute_dtype: torch.dtype, double_quant: bool) -> NF4Config:
    """Choose NF4 for the language model's linear layers and experts; the rest stays in 16 bits."""
    return NF4Config(
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
        llm_int8_skip_modules=list(KEPT_IN_16_BITS),
    )


def _was_left_transposed(model: Any, experts: torch.Tensor) -> bool:
    """Tell whether the loader could not see that the checkpoint has these experts as [E, in, out].

    It transposes a parameter of another shape, so square experts of Qwen3-VL's official layout
    pass as they are. transformers 4 wrote that layout; version 5 saves the model's own.
    """
    config = model.config
    is_square = experts.shape[1] == experts.shape[2]
    is_old = Version(config.transformers_version or "4").major < 5
    return is_square and is_old and config.model_type == "qwen3_vl_moe"


def _is_fused_experts(module: nn.Module) -> bool:
    """Tell whether a module uses transformers' experts interface in its default layout.

    That is: rows [gate; up], no bias, not transposed, no norm after an expert, the usual gate.
    """
    layout = {
        "has_gate": True,
        "is_concatenated": True,
        "has_bias": False,
        "is_transposed": False,
    }
    for flag, wanted in layout.items():
        if getattr(module, flag, None) != wanted:
            return False
    if getattr(module, "has_post_expert_norm", False):
        return False
    return type(module)._apply_gate is _default_apply_gate

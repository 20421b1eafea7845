"""Say which module gets which fast forward, in which order, and why: one table for all of fast/.

A forward is replaced on the module itself, so weights, names and hooks stay those of transformers
and PEFT. Modules that no row matches keep their forwards: a family that is new here works, only
slower.
"""

import enum
import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from vqa_utils.model.fast._attention import attention_forward
from vqa_utils.model.fast._layer import has_fast_parts, layer_forward, prepare_layer
from vqa_utils.model.fast._lora import has_plain_lora, lora_forward, prepare_lora_layer
from vqa_utils.model.fast._padding import language_model_forward
from vqa_utils.model.fast._vision import (
    block_forward,
    embed_patches_forward,
    tower_forward,
    vision_attention_forward,
)

Matches = Callable[[str, nn.Module], bool]  # a module's name in the model, and the module


class When(enum.Enum):
    """When a row of the table is applied."""

    ON_THE_BASE = enum.auto()  # once its weights are loaded
    ON_THE_ADAPTED_MODEL = enum.auto()  # once it has LoRA layers


class Row(NamedTuple):
    """A kind of module and its new forward."""

    when: When
    matches: Matches
    forward: Callable[..., Any]
    why: str
    wraps: bool = False
    """The new forward calls the old one, which it gets as its second argument."""
    prepare: Callable[[Any], None] | None = None
    """Called with the module before its forward is replaced."""


def of_class(*names: str) -> Matches:
    """Match modules of transformers' classes of these names."""
    return lambda name, module: type(module).__name__ in names


def named(last: str) -> Matches:
    """Match modules whose name ends so."""
    return lambda name, module: name.endswith(last)


def in_tower_with(*parts: str) -> Matches:
    """Match modules of the vision tower that have all of these attributes, of whatever family."""
    return lambda name, module: "visual" in name and all(hasattr(module, part) for part in parts)


def _is_patch_embedding(name: str, module: nn.Module) -> bool:
    return name.endswith("visual.patch_embed") and isinstance(
        getattr(module, "proj", None), nn.Conv3d
    )


def _is_fast_layer(name: str, module: nn.Module) -> bool:
    classes = ("Qwen3VLTextDecoderLayer", "Qwen3VLMoeTextDecoderLayer")
    return type(module).__name__ in classes and has_fast_parts(module)


TABLE = (
    Row(
        When.ON_THE_BASE,
        in_tower_with("patch_embed"),
        tower_forward,
        "the positions of all patches at once; what its blocks share lives for one forward",
        wraps=True,
    ),
    Row(
        When.ON_THE_BASE,
        in_tower_with("norm1", "norm2", "attn", "mlp"),
        block_forward,
        "a sum and the norm after it in one kernel; no autograd",
    ),
    Row(
        When.ON_THE_BASE,
        in_tower_with("qkv", "proj", "num_heads", "scaling"),
        vision_attention_forward,
        "all images in one batch, without a loop and a synchronisation in each layer",
    ),
    Row(
        When.ON_THE_BASE,
        _is_patch_embedding,
        embed_patches_forward,
        "one product; Conv3d is 10 to 20 times slower in torch 2.9",
    ),
    Row(
        When.ON_THE_BASE,
        of_class("Qwen3VLTextAttention", "Qwen3VLMoeTextAttention"),
        attention_forward,
        "one product for q, k and v, one kernel for all that is done to heads",
    ),
    Row(
        When.ON_THE_BASE,
        named("language_model"),
        language_model_forward,
        "padding on the right needs no mask; what the layers share lives for one forward",
        wraps=True,  # accelerate's forward, where it has a hook there
    ),
    Row(
        When.ON_THE_ADAPTED_MODEL,
        lambda name, module: has_plain_lora(module),
        lora_forward,
        "the update is added by the product that makes it; A and B are cast once per step",
        prepare=prepare_lora_layer,
    ),
    Row(
        When.ON_THE_ADAPTED_MODEL,  # after the row of LoRA, on which it stands
        _is_fast_layer,
        layer_forward,
        "one node of autograd per layer, with a backward that recomputes half of it at most",
        prepare=prepare_layer,
    ),
)


def use_fast_forwards(model: nn.Module, when: When) -> None:
    """Apply the table's rows of this moment, one after the other, to all modules they match.

    In this process, torch no longer takes cuDNN's kernels for attention.
    """
    # They are the first choice on an H100, and plan anew for each length of a batch
    torch.backends.cuda.enable_cudnn_sdp(False)
    for row in TABLE:
        if row.when is not when:
            continue
        for name, module in list(model.named_modules()):
            if row.matches(name, module):
                _replace_forward(module, row)


def _replace_forward(module: nn.Module, row: Row) -> None:
    if row.prepare is not None:
        row.prepare(module)
    if row.wraps:
        # module.forward is accelerate's where it has a hook on the module
        module.forward = functools.partial(row.forward, module, module.forward)
    else:
        # On the instance, so that type(module).forward stays the one to fall back to
        module.forward = types.MethodType(row.forward, module)

"""Rows that are padded on the left, computed with their padding on the right: causal attention then needs no mask.

On the left, where batches have it so that all rows end with the answer, each token has to be kept from looking at the padding
in front of it: attention reads a mask for every head, and computes what comes later too, to throw it away. On the right the
padding is later than all that counts.
"""

import types
from typing import Any

import torch
from torch import nn

from vqa_utils.attention import has_cache

BY_POSITION = ("input_ids", "inputs_embeds", "visual_pos_masks")  # [B, L, ...]


def pad_on_the_right(model: nn.Module) -> None:
    """Give the language model the forward below; what goes in and comes out stays padded on the left."""
    for name, module in model.named_modules():
        if name.endswith("language_model"):
            module.forward = types.MethodType(_forward, module)


def _forward(self: nn.Module, *args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
    """As transformers calls it; with a cache, or a mask of [B, 1, L, L], it is transformers' own."""
    if args or attention_mask is None or attention_mask.ndim != 2 or has_cache(kwargs):
        return type(self).forward(self, *args, attention_mask=attention_mask, **kwargs)
    length = attention_mask.shape[1]
    first = attention_mask.int().argmax(1, keepdim=True)  # that is no padding
    place = torch.arange(length, device=attention_mask.device)
    there, back = (place + first) % length, (place - first) % length
    moved = {name: _moved(kwargs[name], there) for name in BY_POSITION if kwargs.get(name) is not None}
    if (positions := kwargs.get("position_ids")) is not None:  # [3, B, L]
        moved["position_ids"] = positions.gather(-1, there.to(positions.device).expand_as(positions))
    output = type(self).forward(self, **kwargs | moved)
    output.last_hidden_state = _moved(output.last_hidden_state, back)
    return output


def _moved(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """From x [B, L, ...] what stands at index [B, L] of each row."""
    index = index.to(x.device).view(*index.shape, *[1] * (x.ndim - 2))
    return x.gather(1, index.expand_as(x))

"""Rows that are padded on the left, computed with their padding on the right: causal attention then needs no mask.

On the left, where batches have it so that all rows end with the answer, each token has to be kept from looking at the padding
in front of it: attention reads a mask for every head, and computes what comes later too, to throw it away. On the right the
padding is later than all that counts.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vqa_utils.model.fast._attention import has_cache

BY_POSITION = ("input_ids", "inputs_embeds", "visual_pos_masks")  # [B, L, ...]


def pad_on_the_right(model: nn.Module) -> None:
    """Put the function below around the language model's forward; what goes in and comes out stays padded on the left."""
    for name, module in model.named_modules():
        if name.endswith("language_model"):
            module.forward = functools.partial(
                _moved_there_and_back, module.forward
            )  # accelerate's, where it has a hook there


def _moved_there_and_back(
    forward: Callable[..., Any], *args: Any, attention_mask: Any = None, **kwargs: Any
) -> Any:
    """As transformers calls it, with a mask [B, L] whose ones are one run in each row; else nothing is moved."""
    asks_for_more = (
        has_cache(kwargs) or kwargs.get("use_cache") or kwargs.get("output_hidden_states")
    )
    if (
        args
        or asks_for_more
        or not isinstance(attention_mask, torch.Tensor)
        or attention_mask.ndim != 2
    ):
        return forward(*args, attention_mask=attention_mask, **kwargs)
    length = attention_mask.shape[1]
    first = attention_mask.int().argmax(1, keepdim=True)  # that is no padding
    place = torch.arange(length, device=attention_mask.device)
    there, back = (place + first) % length, (place - first) % length
    moved = {
        name: _moved(kwargs[name], there) for name in BY_POSITION if kwargs.get(name) is not None
    }
    if (positions := kwargs.get("position_ids")) is not None:  # [3, B, L]
        moved["position_ids"] = positions.gather(
            -1, there.to(positions.device).expand_as(positions)
        )
    output = forward(**kwargs | moved)
    output.last_hidden_state = _moved(output.last_hidden_state, back)
    return output


def _moved(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """From x [B, L, ...] what stands at index [B, L] of each row."""
    index = index.to(x.device).view(*index.shape, *[1] * (x.ndim - 2))
    return x.gather(1, index.expand_as(x))

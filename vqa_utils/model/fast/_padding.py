"""Compute left-padded rows with their padding on the right, where causal attention needs no mask.

Batches are padded on the left, so that all rows end with the answer. Each token then has to be
kept from seeing the padding before it: attention reads a mask for every head, and computes later
positions too, only to throw them away. On the right, padding comes after all tokens, and causal
attention never sees it:

    as batched        computed          and back
    . . a b c         a b c . .         . . a b c
    d e f g h         d e f g h         d e f g h
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vqa_utils.model.fast._attention import has_cache
from vqa_utils.model.fast._shared import one_forward

# Without deepstack_visual_embeds: rows are only shifted, so image tokens keep their order
BY_POSITION = ("input_ids", "inputs_embeds", "visual_pos_masks")  # [B, L, ...]


def language_model_forward(
    self: nn.Module,
    forward: Callable[..., Any],
    *args: Any,
    attention_mask: Any = None,
    **kwargs: Any,
) -> Any:
    """Wrap a language model's forward; its inputs and outputs stay padded on the left.

    Rows are moved under a mask [B, L] whose ones form one run in each row. Under any other mask,
    with a cache, or when the outputs of all layers are asked for, nothing is moved.
    """
    with one_forward():
        asks_for_more = (
            has_cache(kwargs) or kwargs.get("use_cache") or kwargs.get("output_hidden_states")
        )
        is_by_row = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
        if args or asks_for_more or not is_by_row:
            return forward(*args, attention_mask=attention_mask, **kwargs)
        return _padded_on_the_right(forward, attention_mask, kwargs)


def _padded_on_the_right(
    forward: Callable[..., Any], attention_mask: torch.Tensor, kwargs: dict[str, Any]
) -> Any:
    """Move the inputs of `forward`, run it without a mask, and move its last hidden state back."""
    length = attention_mask.shape[1]
    position = torch.arange(length, device=attention_mask.device)  # [L]
    # [B, 1], position of the first token that is no padding
    first = attention_mask.int().argmax(1, keepdim=True)
    there = (position + first) % length  # [B, L]
    back = (position - first) % length  # [B, L]
    moved = dict(kwargs)
    for name in BY_POSITION:
        if kwargs.get(name) is not None:
            moved[name] = _moved(kwargs[name], there)
    positions = kwargs.get("position_ids")  # [3, B, L]
    if positions is not None:
        there = there.to(positions.device)
        moved["position_ids"] = positions.gather(-1, there.expand_as(positions))
    output = forward(**moved)
    output.last_hidden_state = _moved(output.last_hidden_state, back)
    return output


def _moved(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Gather from each row of x [B, L, ...] the positions index [B, L]."""
    trailing = [1] * (x.ndim - 2)
    index = index.to(x.device).view(*index.shape, *trailing)
    return x.gather(1, index.expand_as(x))

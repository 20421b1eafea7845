"""Several option orders of a row in one forward pass: the image and the question once, then each order's own end.

The sequence is a tree: every token sees what all orders share and its own order. So a row costs its image and question
once, and a batch costs the launches and the weights' bytes of one pass, whatever the number of orders.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BatchFeature

from vqa_utils.model.encoder import Encoder, Row
from vqa_utils.prompts import LETTERS, cyclic_order, reorder_options

PAD, SHARED, FIRST_ORDER = 0, 1, 2  # segments of a sequence; the orders count up from FIRST_ORDER


def shifts_of(orders: int) -> tuple[int, ...]:
    """By how many places each of 1, 2 or 4 cyclic orders turns the options."""
    return tuple(range(0, len(LETTERS), len(LETTERS) // orders))


def can_share(model: nn.Module) -> bool:
    """Whether every layer looks at other tokens by a mask alone; linear attention passes a state from token to token."""
    return "linear_attention" not in (
        getattr(model.config.get_text_config(), "layer_types", None) or ()
    )


def encode_orders(encoder: Encoder, rows: Sequence[Row], shifts: Sequence[int]) -> BatchFeature:
    """Like `Encoder.questions`, with the options of each row turned by each of `shifts`, joined by `in_one_sequence`."""
    prompts = []  # [orders][B] token ids
    for shift in shifts:
        reordered = [reorder_options(row, cyclic_order(shift)) for row in rows]
        prompts.append(encoder.prompt_ids(reordered))
    first_order = [reorder_options(row, cyclic_order(shifts[0])) for row in rows]
    batch = encoder.questions(first_order)
    return BatchFeature(in_one_sequence(batch, prompts, encoder.processor.tokenizer.pad_token_id))


def in_one_sequence(
    batch: Mapping[str, torch.Tensor], prompts: Sequence[Sequence[list[int]]], pad: int
) -> dict[str, Any]:
    """Join the orders of each row behind what their prompts have in common.

    Args:
        batch: the rows in the first order as the encoder makes them, left-padded, with `position_ids` [3, B, L].
        prompts: [orders][B] token ids without padding, an image being one token or all of its own.
        pad: the token at unused places.

    Returns:
        The batch with input_ids, mm_token_type_ids [B, P + N * S] and position_ids [3, B, P + N * S] for P shared places and
        S of each order, `segments` [B, P + N * S] in place of the attention mask, and `logits_to_keep`, the N last places of
        the orders.
    """
    own = []  # [B][orders]
    for versions in zip(*prompts, strict=True):
        alike = itertools.takewhile(
            lambda tokens: len(set(tokens)) == 1, zip(*versions, strict=False)
        )
        common = min(sum(1 for _ in alike), min(map(len, versions)) - 1)
        own.append([ids[common:] for ids in versions])
    length, orders = batch["input_ids"].shape[1], len(prompts)
    shared = length - min(len(versions[0]) for versions in own)
    each = max(len(ids) for versions in own for ids in versions)
    rows, total = len(own), shared + orders * each
    ids, types, segments = (
        torch.full((rows, total), pad),
        torch.zeros(rows, total, dtype=torch.long),
        torch.full((rows, total), PAD),
    )
    positions = torch.zeros(3, rows, total, dtype=torch.long)
    for row, versions in enumerate(own):
        count = length - len(versions[0])
        place = slice(shared - count, shared)
        ids[row, place] = batch["input_ids"][row, :count]
        types[row, place] = batch["mm_token_type_ids"][row, :count]
        segments[row, place] = batch["attention_mask"][row, :count] * SHARED
        positions[:, row, place] = batch["position_ids"][:, row, :count]
        for number, version in enumerate(versions):
            end = shared + (number + 1) * each
            place = slice(end - len(version), end)
            ids[row, place] = torch.tensor(version)
            segments[row, place] = FIRST_ORDER + number
            positions[:, row, place] = positions[:, row, shared - 1, None] + torch.arange(
                1, len(version) + 1
            )
    kept = {name: value for name, value in batch.items() if name != "attention_mask"}
    # No tensor: accelerate would move it to the first GPU, and the head is on the last
    last = list(range(shared + each - 1, total, each))
    joined = {
        "input_ids": ids,
        "mm_token_type_ids": types,
        "position_ids": positions,
        "segments": segments,
    }
    return {**kept, **joined, "logits_to_keep": last}


def tree_mask(segments: torch.Tensor) -> torch.Tensor:
    """[B, L] -> [B, 1, L, L], what each token (third) may look at (fourth): before it, shared or of its own order.

    Padding looks at itself, since a softmax over nothing is no number.
    """
    seen = segments[:, None, :]
    own_or_shared = (seen == segments[:, :, None]) | (seen == SHARED)
    every = torch.ones(
        segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device
    )
    return (
        (own_or_shared & (seen != PAD) & every.tril())
        | torch.eye(len(every), dtype=torch.bool, device=every.device)
    )[:, None]

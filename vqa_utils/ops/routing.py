"""Which experts a token goes to, and which rows each expert computes: pairs sorted by expert, and experts by load, in chunks.

In a chunk each expert has as many rows as the busiest: few launches, at the price of some padding. `chunks.split` weighs the two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vqa_utils.ops._launch import is_ready, launch
from vqa_utils.planning.expert_chunks import split

PAIRS_A_THREAD, MOST_EXPERTS = 8, 1024  # of the kernel that counts
MOST_ROUTED = 256  # experts, of the kernel that chooses


@dataclass(frozen=True)
class Chunk:
    """Experts that share a product, with their slots: a row for each pair of token and expert, and padding."""

    experts: slice
    """n places among the group's"""
    slots: slice
    """n * rows of the group's"""


@dataclass(frozen=True)
class Group:
    """Experts whose weights are dense together."""

    experts: slice
    """places in the routing's order of experts"""
    slots: slice
    """of the layer's"""
    chunks: tuple[Chunk, ...]


class Routing:
    """Where each pair of token and expert is computed. One host synchronisation, for the load of each expert.

    Attributes:
        order: [E], the experts by descending load.
        groups: in the order of their slots; experts without tokens are in none.
        slots: how many there are.
        pair, token: [slots], the flat place in `index` [T, k] that a slot computes, and its token; a padding slot has the first.
        slot_of_pair: [T, k]
        meanwhile: what came of it.
    """

    def __init__(
        self,
        index: torch.Tensor,
        num_experts: int,
        at_once: int,
        padding_worth: int,
        meanwhile: Callable[[torch.Tensor], Any] = lambda order: None,
    ):
        """`meanwhile` is given the order before the loads are there: what it queues, a GPU does while the host waits and cuts."""
        load = count_loads(index, num_experts)
        self.order = order_loads(load)
        on_host = torch.empty(num_experts, dtype=load.dtype, pin_memory=load.is_cuda).copy_(
            load, non_blocking=True
        )
        copied = torch.cuda.current_stream(load.device).record_event() if load.is_cuda else None
        self.meanwhile = meanwhile(self.order)
        if copied:
            copied.synchronize()
        loads = on_host.numpy()
        by_load = np.argsort(-loads, kind="stable")
        sizes = split(loads[by_load], at_once, padding_worth)
        experts, rows = np.array(sizes, dtype=np.int64).reshape(-1, 2).T
        edges = np.cumsum(experts * rows)
        first = torch.zeros(num_experts, dtype=torch.long, pin_memory=load.is_cuda)
        rows_of_each = np.repeat(rows, experts)
        first.numpy()[by_load[: len(rows_of_each)]] = np.cumsum(rows_of_each) - rows_of_each
        first = first.to(index.device, non_blocking=True)
        self.slots = int(edges[-1]) if len(edges) else 0
        self.slot_of_pair, self.pair, self.token = place_pairs(index, first, load, self.slots)
        self.groups = _groups(sizes, at_once)


def _groups(sizes: list[tuple[int, int]], at_once: int) -> list[Group]:
    """The chunks, of so many experts with so many rows, in groups of `at_once` experts."""
    groups, chunks, start, slot = [], [], 0, 0
    experts = slots = 0  # of the group so far
    for number, (count, rows) in enumerate(sizes):
        chunks.append(Chunk(slice(experts, experts + count), slice(slots, slots + count * rows)))
        experts, slots = experts + count, slots + count * rows
        if number + 1 == len(sizes) or experts + sizes[number + 1][0] > at_once:
            groups.append(
                Group(slice(start, start + experts), slice(slot, slot + slots), tuple(chunks))
            )
            start, slot, chunks, experts, slots = start + experts, slot + slots, [], 0, 0
    return groups


def choose_experts(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k experts with the largest logits [T, E] and their weights, which are softmax's made to sum to 1: [T, k] each.

    The softmax over all, divided by its sum over the chosen, is the softmax over the chosen alone.
    """
    tokens, experts = logits.shape
    if (
        logits.dtype == torch.float32
        and k <= experts <= MOST_ROUTED
        and k <= 32
        and is_ready(logits.device)
    ):
        weights, index = logits.new_empty(tokens, k), logits.new_empty(tokens, k, dtype=torch.long)
        launch("route", logits.device, 32 * tokens, logits, weights, index, tokens, experts, k)
        return weights, index
    values, index = logits.topk(k)
    return values.softmax(-1), index


def choose_experts_backward(
    grad: torch.Tensor, weights: torch.Tensor, index: torch.Tensor, experts: int
) -> torch.Tensor:
    """The gradient of the logits [T, E] from that of the weights [T, k]: w * (g - <w, g>) at the chosen, 0 elsewhere."""
    tokens, k = weights.shape
    if weights.dtype == grad.dtype == torch.float32 and k <= 32 and is_ready(weights.device):
        out = weights.new_empty(tokens, experts)
        launch(
            "route_backward",
            weights.device,
            32 * tokens,
            grad,
            weights,
            index,
            out,
            tokens,
            experts,
            k,
        )
        return out
    of_chosen = (weights * (grad - (weights * grad).sum(-1, keepdim=True))).to(weights.dtype)
    return weights.new_zeros(tokens, experts).scatter_(1, index, of_chosen)


def count_loads(index: torch.Tensor, experts: int) -> torch.Tensor:
    """How many of the pairs [T, k] go to each expert: [experts]."""
    if experts > MOST_EXPERTS or not is_ready(index.device):
        return torch.bincount(index.flatten(), minlength=experts)
    load = index.new_zeros(experts, dtype=torch.int32)
    launch(
        "count_loads",
        index.device,
        -(-index.numel() // PAIRS_A_THREAD),
        index.contiguous(),
        load,
        index.numel(),
        experts,
    )
    return load


def order_loads(load: torch.Tensor) -> torch.Tensor:
    """The experts by descending load [E], those of one load by their number."""
    if len(load) > MOST_EXPERTS or load.dtype != torch.int32 or not is_ready(load.device):
        return load.argsort(descending=True, stable=True)
    order = load.new_empty(len(load), dtype=torch.long)
    launch("order_loads", load.device, len(load), load, order, len(load))
    return order


def place_pairs(
    index: torch.Tensor, first: torch.Tensor, load: torch.Tensor, slots: int
) -> tuple[torch.Tensor, ...]:
    """Gives each pair one of its expert's slots, in whatever order.

    Args:
        index: [T, k]
        first: [experts], each one's first slot.
        load: what `count_loads` found; may be overwritten.

    Returns:
        The slot of each pair [T, k], the pair and the token of each slot [slots].
    """
    slot_of_pair, of_slot = torch.empty_like(index), index.new_zeros(2, slots)
    pair, token = of_slot
    if load.dtype == torch.int32:
        args = (
            index.contiguous(),
            first,
            load,
            slot_of_pair,
            pair,
            token,
            index.numel(),
            index.shape[1],
        )
        launch("place_pairs", index.device, index.numel(), *args)
        return slot_of_pair, pair, token
    expert_of_pair, order = index.flatten().sort(stable=True)
    rank = torch.arange(len(order), device=index.device) - (load.cumsum(0) - load)[expert_of_pair]
    slot = first[expert_of_pair] + rank
    slot_of_pair.view(-1)[order] = slot
    pair[slot] = order
    return slot_of_pair, pair, pair // index.shape[1]

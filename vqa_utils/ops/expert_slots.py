"""Give each pair of token and expert a slot: experts by load, in chunks of one product each.

In a chunk each expert has as many slots as its busiest one has pairs: few launches, at the price
of padding slots. `planning.expert_chunks.split` weighs the two. Two chunks, of loads 3, 2 and 1 in
this order of experts:

    expert     first        second       third
    slots     [0  1  2]    [3  4  .]    [5]
    chunk     |---- 2 experts, 3 slots each ----| 1 expert, 1 slot

The kernels count the pairs of each expert, order the experts by that, and place the pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from vqa_utils.ops.launch import is_ready, launch
from vqa_utils.planning.expert_chunks import split

PAIRS_A_THREAD = 8  # of the kernels that count: each block first counts in its shared memory
MOST_EXPERTS = 1024  # whose counts a block can hold


@dataclass(frozen=True)
class Chunk:
    """Experts that share a batched product, with their slots."""

    experts: slice
    """n places among the group's"""
    slots: slice
    """n * capacity of the group's"""


@dataclass(frozen=True)
class Group:
    """Experts whose weights are dense at the same time."""

    experts: slice
    """places in the routing's order of experts"""
    slots: slice
    """of the layer's"""
    chunks: tuple[Chunk, ...]


class Placed(NamedTuple):
    """The slots of pairs, and the pairs of slots."""

    slot_of_pair: torch.Tensor
    """[T, k]"""
    pair: torch.Tensor
    """[slots], the flat place in [T, k]; 0 for a padding slot"""


class Routing:
    """The slot of each pair of token and expert, with one host synchronisation for the loads.

    Attributes:
        order: [E], the experts by descending load.
        groups: in the order of their slots; experts without tokens are in none.
        slots: their number, padding slots included.
        slot_of_pair: [T, k]
        pair: [slots], the pair that a slot computes, by its flat place in [T, k]; a padding slot
            has the first one's weight.
        meanwhile: what the argument of this name returned.
    """

    def __init__(
        self,
        index: torch.Tensor,
        num_experts: int,
        at_once: int,
        padding_worth: int,
        meanwhile: Callable[[torch.Tensor], Any] = lambda order: None,
    ):
        """Place all pairs.

        Args:
            index: [T, k], the experts of each token.
            num_experts: E.
            at_once: experts whose weights may be dense at the same time.
            padding_worth: padding slots that take as long as one more chunk.
            meanwhile: called with `order` before the host waits for the loads; a GPU does what it
                queues while the host waits and splits.
        """
        load = count_loads(index, num_experts)  # [E]
        self.order = order_loads(load)
        # Pinned: a copy to pageable memory would make the host wait here
        on_host = torch.empty(num_experts, dtype=load.dtype, pin_memory=load.is_cuda)
        on_host.copy_(load, non_blocking=True)
        # Recorded before `meanwhile` queues its work, so the host does not wait for that
        copied = torch.cuda.current_stream(load.device).record_event() if load.is_cuda else None
        self.meanwhile = meanwhile(self.order)
        if copied is not None:
            copied.synchronize()
        loads = on_host.numpy()
        by_load = np.argsort(-loads, kind="stable")  # [E], equal to self.order: ties by number
        chunks = split(loads[by_load], at_once, padding_worth)  # (experts, slots of each)
        first, self.slots = _first_slots(chunks, by_load, pinned=load.is_cuda)
        first = first.to(index.device, non_blocking=True)
        placed = place_pairs(index, first, load, self.slots)
        self.slot_of_pair, self.pair = placed
        self.groups = _groups(chunks, at_once)


def _first_slots(
    chunks: list[tuple[int, int]], by_load: np.ndarray, *, pinned: bool
) -> tuple[torch.Tensor, int]:
    """Return each expert's first slot [E], 0 for one without tokens, and the number of slots.

    Args:
        chunks: numbers of experts, and of slots for each of them.
        by_load: [E], the experts by descending load.
        pinned: so that a GPU can be given the result without waiting.
    """
    # reshape, as without chunks the array would have one dimension
    experts, capacity = np.array(chunks, dtype=np.int64).reshape(-1, 2).T  # [chunks] each
    capacities = np.repeat(capacity, experts)  # [experts with tokens]
    ends = np.cumsum(capacities)
    first = torch.zeros(len(by_load), dtype=torch.long, pin_memory=pinned)
    # Experts without tokens are the last of by_load, and keep 0
    first.numpy()[by_load[: len(ends)]] = ends - capacities
    return first, int(ends[-1]) if len(ends) else 0


def _groups(chunks: list[tuple[int, int]], at_once: int) -> list[Group]:
    """Describe the chunks group by group.

    Args:
        chunks: numbers of experts, and of slots for each of them.
    """
    groups = []
    first_expert = first_slot = 0  # of the group
    for members in _by_group(chunks, at_once):
        experts = slots = 0  # of the group so far
        of_group = []
        for count, capacity in members:
            taken = slice(slots, slots + count * capacity)
            of_group.append(Chunk(slice(experts, experts + count), taken))
            experts += count
            slots += count * capacity
        all_experts = slice(first_expert, first_expert + experts)
        all_slots = slice(first_slot, first_slot + slots)
        groups.append(Group(all_experts, all_slots, tuple(of_group)))
        first_expert += experts
        first_slot += slots
    return groups


def _by_group(chunks: list[tuple[int, int]], at_once: int) -> list[list[tuple[int, int]]]:
    """Put consecutive chunks together as long as they have at most `at_once` experts."""
    groups: list[list[tuple[int, int]]] = []
    room = 0  # for experts, in the last group
    for chunk in chunks:
        experts, _ = chunk
        if experts > room:
            groups.append([])
            room = at_once
        groups[-1].append(chunk)
        room -= experts
    return groups


def count_loads(index: torch.Tensor, experts: int) -> torch.Tensor:
    """Count the pairs [T, k] of each expert: [E]."""
    device = index.device
    if experts > MOST_EXPERTS or not is_ready(device):
        return torch.bincount(index.flatten(), minlength=experts)
    pairs = index.numel()
    # int32 tells order_loads and place_pairs that there are kernels; bincount returns int64
    load = index.new_zeros(experts, dtype=torch.int32)
    threads = -(-pairs // PAIRS_A_THREAD)  # rounded up
    launch("count_loads", device, threads, index.contiguous(), load, pairs, experts)
    return load


def order_loads(load: torch.Tensor) -> torch.Tensor:
    """Order the experts by descending load [E], equal ones by their number."""
    experts = len(load)
    if experts > MOST_EXPERTS or load.dtype != torch.int32 or not is_ready(load.device):
        return load.argsort(descending=True, stable=True)
    order = load.new_empty(experts, dtype=torch.long)
    launch("order_loads", load.device, experts, load, order, experts)
    return order


def place_pairs(index: torch.Tensor, first: torch.Tensor, load: torch.Tensor, slots: int) -> Placed:
    """Give each pair one of its expert's slots, in any order.

    Args:
        index: [T, k], the experts of each token.
        first: [E], each expert's first slot.
        load: [E], of `count_loads`; may be overwritten.
        slots: their number.
    """
    pairs = index.numel()
    slot_of_pair = torch.empty_like(index)
    pair = index.new_zeros(slots)
    if load.dtype == torch.int32:  # the kernel counted, so there are kernels
        args = (index.contiguous(), first, load, slot_of_pair, pair, pairs, len(load))
        launch("place_pairs", index.device, -(-pairs // PAIRS_A_THREAD), *args)
        return Placed(slot_of_pair, pair)
    expert_of_pair, order = index.flatten().sort(stable=True)  # [T * k] each
    before = load.cumsum(0) - load  # [E], pairs of the experts before each one
    # [T * k], the pair's place among those of its expert
    rank = torch.arange(len(order), device=index.device) - before[expert_of_pair]
    slot = first[expert_of_pair] + rank
    slot_of_pair.view(-1)[order] = slot
    pair[slot] = order
    return Placed(slot_of_pair, pair)

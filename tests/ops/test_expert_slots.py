import numpy as np
import pytest
import torch

from vqa_utils.ops.expert_slots import (
    Chunk,
    Group,
    Routing,
    count_loads,
    order_loads,
    place_pairs,
)
from vqa_utils.planning.expert_chunks import WORTH_SINCE_AMPERE, split


def routed(tokens, experts, k, device):
    """Experts of each token, some of them chosen more than others."""
    torch.manual_seed(0)
    return torch.rand(tokens, experts, device=device).pow(3).topk(k).indices


CASES = pytest.mark.parametrize(
    ("tokens", "experts", "k"), [(1, 8, 2), (3, 8, 1), (37, 128, 8), (4000, 300, 8)]
)


@CASES
def test_loads_are_counted_and_experts_ordered(device, tokens, experts, k):
    index = routed(tokens, experts, k, device)
    load = count_loads(index, experts)
    wanted = index.flatten().bincount(minlength=experts)
    assert torch.equal(load.long(), wanted)
    by_load = wanted.cpu().argsort(descending=True, stable=True)
    assert torch.equal(order_loads(load).cpu(), by_load)


@CASES
def test_each_pair_gets_one_of_its_experts_slots(device, tokens, experts, k):
    index = routed(tokens, experts, k, device)
    load = count_loads(index, experts)
    loads = load.long()
    ends = (loads + 2).cumsum(0)  # two slots of padding each
    first, slots = ends - loads - 2, int(ends[-1])
    slot_of_pair, pair = place_pairs(index, first, load, slots)
    places, expert = slot_of_pair.flatten(), index.flatten()
    assert len(places.unique()) == tokens * k  # none has another's
    assert ((places >= first[expert]) & (places < (ends - 2)[expert])).all()
    assert torch.equal(pair[places], torch.arange(tokens * k, device=device))
    padding = torch.ones(slots, dtype=torch.bool, device=device)
    padding[places] = False
    assert not pair[padding].any()


def test_a_routing_has_groups_of_chunks():
    index = torch.tensor([[2, 0], [0, 2], [2, 1]])
    routing = Routing(index, 4, at_once=2, padding_worth=0)
    assert routing.order.tolist() == [2, 0, 1, 3]
    first = Chunk(slice(0, 1), slice(0, 3))
    second = Chunk(slice(1, 2), slice(3, 5))
    third = Chunk(slice(0, 1), slice(0, 1))
    assert routing.groups == [
        Group(slice(0, 2), slice(0, 5), (first, second)),
        Group(slice(2, 3), slice(5, 6), (third,)),
    ]
    assert routing.pair.tolist() == [0, 3, 4, 1, 2, 5]
    assert routing.slot_of_pair.tolist() == [[0, 3], [4, 1], [2, 5]]


def test_a_chunk_pads_its_experts_to_the_busiest():
    loads = torch.tensor([10, 9, 8, 7, 6])
    index = torch.repeat_interleave(loads)[torch.randperm(40)][:, None]
    routing = Routing(index, 5, at_once=5, padding_worth=100)
    assert (
        routing.slots == 60
    )  # two chunks: three experts of 10 slots and two of 15 would be 60 too
    assert routing.pair[routing.slot_of_pair.flatten()].tolist() == list(range(40))


@pytest.mark.parametrize(
    ("loads", "at_once", "padding_worth", "expected"),
    [
        ([5] * 9, 3, 5, [(3, 5)] * 3),  # at most so many experts
        (
            [5] * 40,
            12,
            50,
            [(12, 5)] * 3 + [(4, 6)],
        ),  # of one group, also where no group's end is a place to cut by itself
        (
            [9, 8, 2, 2, 1, 1, 1, 0],
            8,
            0.1,
            [(1, 9), (1, 8), (2, 2), (3, 1)],
        ),  # where padding may cost nothing, exact
        (
            [9, 9, 2, 2, 1, 1, 0],
            8,
            3,
            [(2, 9), (4, 2)],
        ),  # two rows of padding cost less than a chunk
        ([7], 8, 3, [(1, 7)]),
        (
            [900, 700, 300, 300, 10],
            4,
            400,
            [(2, 928), (2, 320), (1, 64)],
        ),  # rounded, for a quarter of a chunk's worth at most
        ([0, 0], 8, 5, []),
    ],
)
def test_chunks_weigh_padding_against_launches(loads, at_once, padding_worth, expected):
    assert split(loads, at_once, padding_worth) == expected


def test_sizes_come_again_from_batch_to_batch():
    rng, batches = np.random.default_rng(0), []
    layers = rng.dirichlet(
        np.full(128, 2.0), size=8
    )  # each has its own share of tokens for each expert
    for _ in range(40):
        loads = [np.sort(rng.multinomial(36_000, shares))[::-1] for shares in layers]
        batches.append([size for load in loads for size in split(load, 64, WORTH_SINCE_AMPERE)])
        assert sum(experts * rows for experts, rows in batches[-1]) < 1.5 * 8 * 36_000
    known = {size for batch in batches[:20] for size in batch}
    later = [size for batch in batches[20:] for size in batch]
    assert sum(size not in known for size in later) < 0.1 * len(later)

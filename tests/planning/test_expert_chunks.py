"""Chunks of experts, against the cheapest of all cuts."""

import itertools

import numpy as np
import pytest

from vqa_utils.planning.expert_chunks import split


def cost(loads, sizes, padding_worth):
    """Slots without the rounding, and a chunk's worth each; None if a chunk crosses a group."""
    slots = 0
    start = 0
    for size in sizes:
        slots += size * loads[start]
        start += size
    return slots + padding_worth * len(sizes)


def all_cuts(count):
    """Every way to cut so many experts, as sizes of chunks."""
    for number in range(count):
        for cuts in itertools.combinations(range(1, count), number):
            edges = [0, *cuts, count]
            yield [after - before for before, after in itertools.pairwise(edges)]


@pytest.mark.parametrize("padding_worth", [0, 1, 3, 10, 100])
@pytest.mark.parametrize("seed", range(5))
def test_no_cut_is_cheaper(seed, padding_worth):
    draws = np.random.default_rng(seed).geometric(1 / 6, 8)
    loads = sorted(draws.tolist(), reverse=True)
    sizes = [experts for experts, _ in split(loads, 8, padding_worth)]
    least = min(cost(loads, each, padding_worth) for each in all_cuts(8))
    assert cost(loads, sizes, padding_worth) == least


def test_every_expert_of_a_chunk_has_the_busiest_ones_slots():
    assert split([9, 8, 3, 2, 2], 5, 3) == [(2, 9), (3, 3)]
    assert split([9, 8, 3, 2, 2], 5, 0) == [(1, 9), (1, 8), (1, 3), (2, 2)]
    assert split([9, 8, 3, 2, 2], 5, 40) == [(5, 10)]  # rounded up to an even number


def test_experts_without_tokens_get_no_chunk():
    assert split([4, 4, 0, 0], 4, 1) == [(2, 4)]
    assert split([0, 0], 4, 1) == split([], 4, 1) == []


def test_no_chunk_crosses_a_group():
    sizes = split([5] * 10, 4, 1000)
    assert [experts for experts, _ in sizes] == [4, 4, 2]


def test_slots_are_rounded_up_by_a_quarter_of_a_chunks_worth_at_most():
    rng = np.random.default_rng(0)
    for padding_worth in (200, 1500):
        loads = sorted(rng.geometric(1 / 40, 128).tolist(), reverse=True)
        start = 0
        for experts, slots in split(loads, 64, padding_worth):
            assert 0 <= experts * (slots - loads[start]) <= padding_worth / 4
            start += experts

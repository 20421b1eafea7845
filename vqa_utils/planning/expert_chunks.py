"""Cut experts into chunks of one batched product each: padding against kernel launches.

Free of torch, because `forecasting` uses it too.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Places at which `split` may cut. More of them cost the host time and save little padding.
CUTS = 32

# Padding slots that take as long as one more chunk's launches. A slot of the 30B's experts takes
# 25 MFLOP forward and backward and moves 40 kB: about 1.1 us on a T4 and 0.08 us on an H100.
# A chunk has about 10 launches of 5 us on a GPU that never waits: 50 slots of a T4. 200 lets a slow
# host keep up at four rows per pass.
WORTH_ON_TURING = 200
# A faster GPU waits for its host. 750 and 3,000 were no faster (tests/bench/README.md).
WORTH_SINCE_AMPERE = 1500

# A product of a new size costs cuBLAS's host side 0.3 to 1 ms (tests/bench/README.md), and each
# batch has other loads. Rounding a chunk's slots up lets the same sizes come again; it may add
# a quarter of `padding_worth` to a chunk.
ROUNDING = 4


class _Cuts(NamedTuple):
    """Places to cut experts. C is the number of cuts, with the end and without the start."""

    places: np.ndarray
    """[C + 1], ascending from 0 to the number of busy experts"""
    experts: np.ndarray
    """[C, C], experts from one cut (column: the start) to a later one (row: the end)"""
    in_one_group: np.ndarray
    """[C, C], True if these experts belong to one group"""


def split(loads: Sequence[int], at_once: int, padding_worth: int) -> list[tuple[int, int]]:
    """Cut experts, sorted by load, into chunks of one batched product each.

    Every expert of a chunk gets as many slots as the chunk's first, the busiest one, needs:

        load   9 ▓▓▓▓▓▓▓▓▓ │
               8 ▓▓▓▓▓▓▓▓░ │               ▓ a token's slot
               3           │ ▓▓▓           ░ padding
               2           │ ▓▓░
               2           │ ▓▓░
                  2 x 9    │  3 x 3 slots: chunks [(2, 9), (3, 3)]

    Find the cheapest cuts. A chunk costs its slots, and `padding_worth` more for its launches.
    The slots of an expert are then rounded up to a multiple of a power of two.

    Args:
        loads: tokens per expert, descending. Experts without tokens get no chunk.
        at_once: experts whose weights are dense at the same time. Consecutive experts form groups
            of this many; no chunk crosses a group.
        padding_worth: the padding slots worth the time of one more chunk.

    Returns:
        For each chunk, its number of experts and the slots of each.
    """
    tokens = np.asarray(loads)  # [experts]
    cuts = _possible_cuts(int(np.count_nonzero(tokens)), at_once)
    busiest = tokens[cuts.places[:-1]]  # [C], of the chunk that starts there
    # [C, C], in slots; row: the end, column: the start
    chunk_costs = np.where(cuts.in_one_group, cuts.experts * busiest + padding_worth, np.inf)

    # Dynamic programming from left to right: the cheapest way to cut the experts before place n is
    # the cheapest way to cut those before the last chunk's start, and that chunk
    cheapest = np.zeros(len(cuts.places))  # [C + 1], in slots
    last_start = [0]  # per place: index of the place where the cheapest last chunk starts
    for end in range(1, len(cuts.places)):
        totals = cheapest[:end] + chunk_costs[end - 1, :end]  # [end], by start
        best = int(totals.argmin())
        last_start.append(best)
        cheapest[end] = totals[best]

    # The chunks, read backwards from the end
    chunks = []
    end = len(cuts.places) - 1
    while end > 0:
        start = last_start[end]
        experts = int(cuts.places[end] - cuts.places[start])
        most_added = padding_worth // ROUNDING // experts  # slots per expert
        slots = _rounded_up(int(busiest[start]), most_added)
        chunks.append((experts, slots))
        end = start
    return chunks[::-1]


def _rounded_up(slots: int, most_added: int) -> int:
    """Round up to a multiple of the largest power of two up to `most_added`."""
    exponent = max(1, most_added).bit_length() - 1
    multiple = 2**exponent
    return -(-slots // multiple) * multiple  # -(-a // b) is the ceiling of a / b


@functools.cache
def _possible_cuts(busy: int, at_once: int) -> _Cuts:
    """List the places to cut `busy` experts: about CUTS, evenly spaced, and all edges of groups."""
    step = max(1, min(at_once, busy // CUTS))
    places = np.unique([*range(0, busy, step), *range(0, busy, at_once), busy])
    starts = places[None, :-1]  # [1, C]
    ends = places[1:, None]  # [C, 1]
    group_of_first = starts // at_once
    group_of_last = (ends - 1) // at_once
    return _Cuts(places, ends - starts, group_of_first == group_of_last)

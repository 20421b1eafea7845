"""Which experts share a batched product: padding against launches. Free of torch, as the model of the cost asks the same."""

import functools
from collections.abc import Sequence

import numpy as np

CUTS = 32  # places where `split` may cut: more of them cost the host time and save little padding
# Rows of padding that take as long as one more chunk's launches. A row of the 30B's experts takes 25 MFLOP forward and
# backward and moves 40 kB, about 1.1 us on a T4 and 0.08 on an H100; a chunk has some 10 launches.
WORTH_ON_TURING = 200  # 5 us each on a GPU that is fed would be 50; at 200 a slow host keeps up with four rows a pass too
WORTH_SINCE_AMPERE = (
    1500  # a faster GPU waits for its host; 750 and 3,000 were no faster (tests/bench/README.md)
)
# A product of sizes that cuBLAS has not had yet costs the host 0.3 to 1 ms (tests/bench/README.md), and each batch has other
# loads. So a chunk's rows are rounded up, for a quarter of a chunk's worth at most, so that the same sizes come again.
ROUNDING = 4


def split(loads: Sequence[int], at_once: int, padding_worth: int) -> list[tuple[int, int]]:
    """Cut experts, sorted by load, into chunks: the number of experts and the rows that each gets.

    The cheapest cut, where a chunk costs its rows (experts * the busiest one's load) and as much as `padding_worth` more. Rows
    are then rounded up to a multiple of a power of two. No chunk has experts of two groups of `at_once`.

    Args:
        loads: rows of each expert, descending; those without any are left out.
        at_once: experts whose dense weights are alive together: the first so many, the next, and so on.
        padding_worth: the rows of padding that take as long as one more chunk.
    """
    loads = np.asarray(loads)
    cuts, experts, is_one_group = _places(int(np.count_nonzero(loads)), at_once)
    costs = np.where(is_one_group, experts * loads[cuts[:-1]] + padding_worth, np.inf)
    best, before = (
        np.zeros(len(cuts)),
        [0],
    )  # of the experts before each cut: the cost, and the cut where the last chunk starts
    for end in range(1, len(cuts)):
        totals = best[:end] + costs[end - 1, :end]
        before.append(int(totals.argmin()))
        best[end] = totals[before[-1]]
    sizes, end = [], len(cuts) - 1
    while end:
        experts, busiest = int(cuts[end] - cuts[before[end]]), int(loads[cuts[before[end]]])
        step = 1 << max(1, padding_worth // ROUNDING // experts).bit_length() - 1
        sizes.append((experts, -(-busiest // step) * step))
        end = before[end]
    return sizes[::-1]


@functools.cache
def _places(busy: int, at_once: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where `busy` experts may be cut; experts from a cut (second) to a later one (first); whether they are of one group."""
    cuts = np.unique(
        [*range(0, busy, max(1, min(at_once, busy // CUTS))), *range(0, busy, at_once), busy]
    )
    starts, ends = cuts[None, :-1], cuts[1:, None]
    return cuts, ends - starts, starts // at_once == (ends - 1) // at_once

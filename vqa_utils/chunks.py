"""Which experts share a batched product: padding against launches. Free of torch, as the model of the cost asks the same."""

from collections.abc import Sequence

import numpy as np

CHUNK_SHARE = 2  # a chunk has, before its rows are rounded up, at most half as many as there are pairs: that bounds its buffers
CUTS = 32  # places where `split` may cut: more of them cost the host time and save little padding
# Rows of padding that take as long as one more chunk's launches. A row of the 30B's experts takes 25 MFLOP forward and
# backward and moves 40 kB, about 1.1 us on a T4 and 0.08 on an H100; a chunk has some 12 launches.
WORTH_ON_TURING = 200  # 5 us each on a GPU that is fed would be 50; at 200 a slow host keeps up with four rows a pass too
WORTH_SINCE_AMPERE = 3000  # a faster GPU waits for its host, for which a launch takes 20 and more
# A product of sizes that cuBLAS has not had yet costs the host 0.3 to 1 ms (tests/bench/README.md), and each batch has other
# loads. So a chunk's rows are rounded up, for a quarter of a chunk's worth at most, so that the same sizes come again.
ROUNDING = 4


def split(loads: Sequence[int], at_once: int, padding_worth: int) -> list[tuple[int, int]]:
    """Cut experts, sorted by load, into chunks: the number of experts and the rows that each gets.

    The cheapest cut, where a chunk costs its rows (experts * the busiest one's load) and as much as `padding_worth` more. Rows
    are then rounded up to a multiple of a power of two.

    Args:
        loads: rows of each expert, descending; those without any are left out.
        at_once: the most experts of a chunk, whose dense weights are alive together.
        padding_worth: the rows of padding that take as long as one more chunk.
    """
    loads = np.asarray(loads)
    busy = np.count_nonzero(loads)
    cuts = np.append(np.arange(0, busy, max(1, min(at_once, busy // CUTS))), busy)
    starts, ends = cuts[:-1, None], cuts[None, 1:]
    rows = (ends - starts) * loads[starts]  # of a chunk from one cut to another
    allowed = (ends - starts <= at_once) & (rows <= loads.sum() // CHUNK_SHARE)
    np.fill_diagonal(allowed, True)  # neighbours, which cannot be cut again
    costs = np.where(allowed, rows + padding_worth, np.inf)
    best, before = np.zeros(len(cuts)), [0]  # of the experts before each cut: the cost, and the cut where the last chunk starts
    for end in range(1, len(cuts)):
        totals = best[:end] + costs[:end, end - 1]
        before.append(int(totals.argmin()))
        best[end] = totals[before[-1]]
    sizes, end = [], len(cuts) - 1
    while end:
        experts, busiest = int(cuts[end] - cuts[before[end]]), int(loads[cuts[before[end]]])
        step = 1 << max(1, padding_worth // ROUNDING // experts).bit_length() - 1
        sizes.append((experts, -(-busiest // step) * step))
        end = before[end]
    return sizes[::-1]

"""Order the rows of each optimizer step.

Samplers are stacked: each takes the keys of the order below it and yields its own, one per row.
"""

import itertools
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

from torch.utils.data import Sampler

from vqa_utils.model.encoder import Row

Key = int | tuple[int, int]  # the number of a row, or that and the number of one of its wordings
T_co = TypeVar("T_co", covariant=True)


class Rows(Protocol):
    """Training rows by their keys."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: Any, /) -> Row: ...


class Order(Protocol[T_co]):
    """Keys in an order of each epoch's own, such as accelerate's SeedableRandomSampler gives."""

    def __iter__(self) -> Iterator[T_co]: ...
    def __len__(self) -> int: ...
    def set_epoch(self, epoch: int) -> None: ...


class OrderAbove(Sampler[T_co]):
    """A sampler with as many keys as the order below it, in the same epoch."""

    def __init__(self, order: Order[Any]):
        self.order = order
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Start another epoch; a resumed training asks for the one it was in."""
        self.epoch = epoch
        self.order.set_epoch(epoch)


class SortedSteps(OrderAbove[Key]):
    """Sort the rows of each optimizer step by length, the longest first.

    The first micro-batch is then as large as the longest row makes it anyway. If memory is short,
    it fails there; the smaller ones after it fit into the memory that the first has reserved.
    """

    def __init__(self, order: Order[Key], rows: Rows, step_rows: int):
        super().__init__(order)
        self.rows = rows
        self.step_rows = step_rows

    def __iter__(self) -> Iterator[Key]:
        for step in steps_of(self.order, self.step_rows):
            yield from sorted(step, key=self._length, reverse=True)

    def _length(self, key: Key) -> int:
        return self.rows[key]["length"]


def steps_of(order: Order[T_co], step_rows: int) -> Iterator[list[T_co]]:
    """Cut an order into the keys of each optimizer step; the last step may be shorter."""
    keys = iter(order)
    while step := list(itertools.islice(keys, step_rows)):
        yield step

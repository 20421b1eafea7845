"""Options in a new order each epoch, the label with them: no letter is worth more than another."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler

from vqa_utils.prompts import LETTERS, reorder_options

Key = int | tuple[int, int]  # a row, or a row in one of its wordings
Places = tuple[
    int, ...
]  # where the right option goes, then where the three others go, in their order


class EpochSampler(Protocol):
    """A sampler whose order depends on the epoch."""

    def __iter__(self) -> Iterator[Key]: ...
    def __len__(self) -> int: ...
    def set_epoch(self, epoch: int) -> None: ...


class ShuffledSteps(Sampler[tuple[Key, Places]]):
    """The rows of `order`, each with new places for its options.

    Within an optimizer step the right options are spread over the letters as evenly as its rows allow. The places depend on
    the seed, the epoch and the step alone, so a resumed training draws what it would have drawn.
    """

    def __init__(self, order: EpochSampler, step_rows: int, seed: int):
        self.order, self.step_rows, self.seed, self.epoch = order, step_rows, seed, 0

    def __iter__(self) -> Iterator[tuple[Key, Places]]:
        for number, row in enumerate(self.order):
            step, within = divmod(number, self.step_rows)
            if not within:
                rng = np.random.default_rng([self.seed, self.epoch, step])
                size = min(self.step_rows, len(self.order) - number)
                right = rng.permutation(np.resize(rng.permutation(len(LETTERS)), size))
            others = rng.permutation(
                [place for place in range(len(LETTERS)) if place != right[within]]
            )
            yield row, (int(right[within]), *map(int, others))

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has other places."""
        self.epoch = epoch
        self.order.set_epoch(epoch)


class ShuffledOptions(Dataset):
    """Training rows, each asked for with the places of its options."""

    def __init__(self, rows: Sequence[dict[str, Any]] | Dataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[Key, Places]) -> dict[str, Any]:
        number, places = key
        row = self.rows[number]
        return reorder_options(row, order_of(places, row["answer"]))


def order_of(places: Places, answer: str) -> list[int]:
    """The option at each place, for `reorder_options`: the right option goes to places[0]."""
    right = LETTERS.index(answer)
    options = [right, *(option for option in range(len(LETTERS)) if option != right)]
    option_at = dict(zip(places, options, strict=True))
    return [option_at[place] for place in range(len(LETTERS))]

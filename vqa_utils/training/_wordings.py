"""Draw each row's wording anew each epoch."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset

from vqa_utils.model.encoder import Row
from vqa_utils.training._steps import Order, OrderAbove


class WordedRows(Dataset[Row]):
    """Training rows in all their wordings, by the number of the row and of the wording."""

    def __init__(self, wordings: Sequence[Sequence[Row]]):
        """Take the wordings of each row."""
        self.wordings = wordings

    def __len__(self) -> int:
        return len(self.wordings)

    def __getitem__(self, key: tuple[int, int]) -> Row:
        row, wording = key
        return self.wordings[row][wording]


class DrawnWordings(OrderAbove[tuple[int, int]]):
    """Add the number of a wording to each row of an order; a row's wordings are equally probable.

    A draw depends on the seed, the epoch and the row alone, so that a resumed training draws the
    same.
    """

    def __init__(self, order: Order[int], rows: WordedRows, seed: int):
        super().__init__(order)
        self.seed = seed
        self.counts = np.array([len(wordings) for wordings in rows.wordings])  # [N]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # By a spawn key: a list of numbers seeds `ShuffledSteps`, which must not draw the same
        source = np.random.SeedSequence(self.seed, spawn_key=(self.epoch,))
        uniform = np.random.default_rng(source).random(len(self.counts))  # [N], in [0, 1)
        wordings = (uniform * self.counts).astype(int)  # [N]
        for row in self.order:
            yield row, int(wordings[row])

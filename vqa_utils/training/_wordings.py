"""Rows in other words each epoch: the wording of each is drawn anew."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from vqa_utils.training._option_shuffling import EpochSampler


class WordedRows(Dataset):
    """Training rows in all their wordings, each asked for with the number of one."""

    def __init__(self, rows: Sequence[Sequence[dict[str, Any]]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        row, wording = key
        return self.rows[row][wording]


class DrawnWordings(Sampler[tuple[int, int]]):
    """The rows of `order`, each with the number of a wording, all of a row's being equally probable.

    A draw depends on the seed, the epoch and the row alone, so a resumed training draws what it would have drawn.
    """

    def __init__(self, order: EpochSampler, rows: WordedRows, seed: int):
        self.order, self.seed, self.epoch = order, seed, 0
        self.counts = np.array([len(wordings) for wordings in rows.rows])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # A spawn key's stream is none that a list of numbers gives, which `ShuffledSteps` draws from
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)))
        drawn = (rng.random(len(self.counts)) * self.counts).astype(int)
        for row in self.order:
            yield row, int(drawn[row])

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has draws of its own."""
        self.epoch = epoch
        self.order.set_epoch(epoch)

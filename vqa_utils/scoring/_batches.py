"""Encode batches of rows for the model while it computes."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader
from transformers import BatchFeature

from vqa_utils.artifacts.stop import quiet_worker
from vqa_utils.model.encoder import Encoder, Row
from vqa_utils.model.pass_size import PassSize
from vqa_utils.scoring._orders import encode_orders, in_order


@dataclass(frozen=True)
class EncodedPasses:
    """Encodes a batch of rows: one pass for all orders if they can share, else one pass per order.

    Orders of outliers do not share: their mask would take memory by the square of the tokens.
    """

    encoder: Encoder
    size: PassSize
    shifts: Sequence[int]
    """By how many places each order turns the options."""
    share: bool
    """The model `can_share`."""

    def __call__(self, rows: Sequence[Row]) -> list[BatchFeature]:
        """Encode rows with their `length`, all outliers or none."""
        if self.share and len(self.shifts) > 1 and not self.size.is_outlier(rows[0]["length"]):
            return [encode_orders(self.encoder, rows, self.shifts)]
        return [self.encoder.questions(in_order(rows, shift)) for shift in self.shifts]


def loader_of(
    rows: Sequence[Row], batches: Sequence[Sequence[int]], encode: EncodedPasses, workers: int
) -> "DataLoader[Any]":
    """Load the encoded passes of each batch of row numbers.

    Args:
        workers: processes that decode images while the model computes; 0 decodes in this one.
    """
    # Keeps the order of `batches` with any number of workers: the caller zips the two
    return DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=encode,
        num_workers=workers,
        worker_init_fn=functools.partial(quiet_worker, None),
    )

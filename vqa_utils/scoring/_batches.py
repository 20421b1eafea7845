"""Batch rows of like length, and encode them for the model while it computes."""

import functools
from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader
from transformers import BatchFeature

from vqa_utils.artifacts.stop import quiet_worker
from vqa_utils.model.encoder import Encoder, Row
from vqa_utils.scoring._orders import encode_orders, in_order


def like_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Split row numbers into batches by length, the longest first, so that little is padding."""
    # If memory is short, the first batch fails, not a later one
    longest_first = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
    starts = range(0, len(lengths), batch_size)
    return [longest_first[start : start + batch_size] for start in starts]


def loader_of(
    rows: Sequence[Row],
    batches: Sequence[Sequence[int]],
    encoder: Encoder,
    *,
    shifts: Sequence[int],
    share: bool,
    workers: int,
) -> "DataLoader[Any]":
    """Load the encoded passes of each batch of row numbers.

    Args:
        shifts: by how many places each order turns the options.
        share: encode all orders as one pass, which needs a model that `can_share`.
        workers: processes that decode images while the model computes; 0 decodes in this one.
    """
    encode = functools.partial(encode_passes, encoder=encoder, shifts=shifts, share=share)
    # Keeps the order of `batches` with any number of workers: the caller zips the two
    return DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=encode,
        num_workers=workers,
        worker_init_fn=functools.partial(quiet_worker, None),
    )


def encode_passes(
    rows: Sequence[Row], *, encoder: Encoder, shifts: Sequence[int], share: bool
) -> list[BatchFeature]:
    """Encode some rows: one pass for all orders if they can share, else one pass per order."""
    if share and len(shifts) > 1:
        return [encode_orders(encoder, rows, shifts)]
    return [encoder.questions(in_order(rows, shift)) for shift in shifts]

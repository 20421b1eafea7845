"""Split a batch of training or evaluation into several passes, if a row in it is an outlier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchFeature

from vqa_utils.model.encoder import IGNORED, Encoder, Row
from vqa_utils.model.pass_size import PassSize

PASSES = "passes"


@dataclass(frozen=True)
class ExamplePasses:
    """Collates rows with their `length`: what `Encoder.examples` gives, or several of it.

    Without outliers, a batch is one pass. Else `passes` holds its passes, and `labels` [B, 2] each
    row's letter, by which the Trainer counts.
    """

    encoder: Encoder
    row_tokens: int
    """Of a row that is no outlier, image and text."""

    def __call__(self, rows: Sequence[Row]) -> BatchFeature:
        """Encode a batch."""
        size = PassSize(len(rows), self.row_tokens)
        groups = size.passes([row["length"] for row in rows])
        if len(groups) == 1:
            return self.encoder.examples(rows)
        passes = []
        for group in groups:
            passes.append(self.encoder.examples([rows[number] for number in group]))
        letters = [one["labels"][one["labels"] != IGNORED] for one in passes]
        labels = torch.cat(letters)[:, None]  # [B, 1]
        # The Trainer does not count the first column, which no position predicts
        labels = torch.nn.functional.pad(labels, (1, 0), value=IGNORED)
        return BatchFeature({"labels": labels, PASSES: passes})


def passes_of(batch: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the passes of a batch of `ExamplePasses`."""
    return batch.get(PASSES, [batch])

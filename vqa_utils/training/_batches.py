"""What each optimizer step is made of: micro-batches of rows of like length, their words and the order of their options."""

import itertools
from collections.abc import Iterator, Sequence

import pandas as pd
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer

from vqa_utils.config import Config
from vqa_utils.data.paraphrases import wordings_of
from vqa_utils.model.encoder import Encoder, Row
from vqa_utils.training._option_shuffling import EpochSampler, Key, ShuffledOptions, ShuffledSteps
from vqa_utils.training._wordings import DrawnWordings, WordedRows


def training_rows(config: Config, encoder: Encoder, train: pd.DataFrame) -> Sequence[Row] | Dataset:
    """The rows to learn from, each with its `length` in tokens, as `StepTrainer` takes them under the settings."""
    rows = train.to_dict("records")
    if config.paraphrase:
        versions = [wordings_of(row) for row in rows]
        measured = iter(with_lengths(list(itertools.chain.from_iterable(versions)), encoder))
        learned = WordedRows([list(itertools.islice(measured, len(of_row))) for of_row in versions])
    else:
        learned = with_lengths(rows, encoder)
    return ShuffledOptions(learned) if config.shuffle_options else learned


def with_lengths(rows: Sequence[Row], encoder: Encoder) -> list[Row]:
    """The rows, each with its `length` in tokens."""
    return [
        {**row, "length": length} for row, length in zip(rows, encoder.lengths(rows), strict=True)
    ]


class StepTrainer(Trainer):
    """The Trainer, which sorts the rows of each optimizer step by their `length` in tokens.

    A step has the same rows as without, so its gradients are the same, and a resumed training finds its place by the same
    count. transformers' `group_by_length` would put other rows into a step. With one micro-batch a step nothing is sorted.
    Where the training rows are `WordedRows`, each is worded as `DrawnWordings` says, and sorted by the length that it has then;
    where they are `ShuffledOptions`, the options of each row are moved as `ShuffledSteps` says.
    """

    def get_train_dataloader(self) -> DataLoader:
        """The Trainer's own, with its rows as `DrawnWordings`, `SortedSteps` and `ShuffledSteps` ask for them."""
        loader, micro_batches = (
            super().get_train_dataloader(),
            self.args.gradient_accumulation_steps,
        )
        shuffled = isinstance(self.train_dataset, ShuffledOptions)
        rows = self.train_dataset.rows if shuffled else self.train_dataset
        order, step_rows = loader.get_sampler(), self.args.train_batch_size * micro_batches
        if isinstance(rows, WordedRows):
            order = DrawnWordings(order, rows, self.args.seed)
        if micro_batches > 1:
            order = SortedSteps(order, rows, step_rows)
        loader.set_sampler(ShuffledSteps(order, step_rows, self.args.seed) if shuffled else order)
        return loader


class SortedSteps(Sampler[Key]):
    """A random order of rows in which each optimizer step's are sorted, the longest first.

    Its first micro-batch is then as large as the one with the longest row would be anyway; what does not fit fails there,
    and the smaller ones behind it fit into the memory that it leaves with the allocator.
    """

    def __init__(self, order: EpochSampler, rows: Sequence[Row] | Dataset, step_rows: int):
        self.order, self.rows, self.step_rows = order, rows, step_rows

    def __iter__(self) -> Iterator[Key]:
        order = iter(self.order)
        while step := list(itertools.islice(order, self.step_rows)):
            yield from sorted(step, key=lambda key: self.rows[key]["length"], reverse=True)

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has an order of its own; a resumed training asks for the one that it was in."""
        self.order.set_epoch(epoch)

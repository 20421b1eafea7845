"""What each optimizer step is made of: micro-batches of rows of like length, and the order of their options."""

import itertools
from collections.abc import Iterator, Sequence

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer

from vqa_utils.shuffle import ShuffledOptions, ShuffledSteps


class StepTrainer(Trainer):
    """The Trainer, which sorts the rows of each optimizer step by their `length` in tokens.

    A step has the same rows as without, so its gradients are the same, and a resumed training finds its place by the same
    count. transformers' `group_by_length` would put other rows into a step. With one micro-batch a step nothing is sorted.
    Where the training rows are `ShuffledOptions`, the options of each row are moved as `ShuffledSteps` says.
    """

    def get_train_dataloader(self) -> DataLoader:
        """The Trainer's own, with its rows in the order of `SortedSteps` and `ShuffledSteps`."""
        loader, micro_batches = super().get_train_dataloader(), self.args.gradient_accumulation_steps
        shuffled = isinstance(self.train_dataset, ShuffledOptions)
        rows = self.train_dataset.rows if shuffled else self.train_dataset
        order, step_rows = loader.get_sampler(), self.args.train_batch_size * micro_batches
        if micro_batches > 1:
            order = SortedSteps(order, [row["length"] for row in rows], step_rows)
        loader.set_sampler(ShuffledSteps(order, step_rows, self.args.seed) if shuffled else order)
        return loader


class SortedSteps(Sampler[int]):
    """A random order of rows in which each optimizer step's are sorted, the longest first.

    Its first micro-batch is then as large as the one with the longest row would be anyway; what does not fit fails there,
    and the smaller ones behind it fit into the memory that it leaves with the allocator.
    """

    def __init__(self, order: SeedableRandomSampler, lengths: Sequence[int], step_rows: int):
        self.order, self.lengths, self.step_rows = order, lengths, step_rows

    def __iter__(self) -> Iterator[int]:
        order = iter(self.order)
        while step := list(itertools.islice(order, self.step_rows)):
            yield from sorted(step, key=self.lengths.__getitem__, reverse=True)

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has an order of its own; a resumed training asks for the one that it was in."""
        self.order.set_epoch(epoch)

"""A training of a model that only looks at its rows."""

import dataclasses

import pytest
import torch

from vqa_utils.training._trainer import StepTrainer, training_arguments


class Watching(torch.nn.Module):
    """One weight, and the rows of each micro-batch that it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.micro_batches = []

    def forward(self, rows):
        self.micro_batches.append(rows)
        return {"loss": self.weight * len(rows)}


@pytest.fixture(scope="module")
def watch_training(config):
    """Trains two epochs of steps of 16 rows and returns the micro-batches of rows, as they came.

    A checkpoint is left after the fourth step, to go on from.
    """

    def train(
        rows, folder, *, micro_batch=4, workers=0, checkpoint=None, trainer_class=StepTrainer
    ):
        settings = dataclasses.replace(
            config,
            micro_batch=micro_batch,
            accumulation=16 // micro_batch,
            epochs=2,
            num_workers=workers,
        )
        arguments = training_arguments(settings, folder, judged=False)
        arguments.save_strategy, arguments.save_steps = "steps", 4
        model = Watching()
        trainer = trainer_class(
            model, arguments, train_dataset=rows, data_collator=lambda batch: {"rows": batch}
        )
        trainer.train(resume_from_checkpoint=checkpoint and str(folder / checkpoint))
        return model.micro_batches

    return train

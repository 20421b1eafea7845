"""Set up transformers' Trainer with a fold's settings, rows, loss and scores."""

import functools
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import nested_concat

from vqa_utils.artifacts.stop import quiet_worker
from vqa_utils.config import Config
from vqa_utils.model.encoder import Encoder, letter_token_ids
from vqa_utils.model.fp16 import grad_scaler
from vqa_utils.model.hand_over import end_turn
from vqa_utils.model.pass_size import row_tokens
from vqa_utils.planning.batches import LONGER_INSTRUCTION
from vqa_utils.training._loss import answer_loss, held_out_scores, letter_logits
from vqa_utils.training._option_shuffling import ShuffledOptions, ShuffledSteps
from vqa_utils.training._passes import ExamplePasses, passes_of
from vqa_utils.training._rows import in_all_wordings, training_rows
from vqa_utils.training._steps import Rows, SortedSteps
from vqa_utils.training._wordings import DrawnWordings, WordedRows


class StepTrainer(Trainer):
    """The Trainer, with the rows of each optimizer step sorted by their `length` in tokens.

    A step has the same rows as in the Trainer, so its gradients are the same, and a resumed
    training finds its place by the same count. transformers' `group_by_length` would put other rows
    into a step. With one micro-batch per step nothing is sorted.

    `WordedRows` are worded by `DrawnWordings` first, and sorted by the length of those words. The
    options of `ShuffledOptions` are moved by `ShuffledSteps` last.
    """

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Go forward and backward, pass by pass; after each, another fold may have the GPU.

        `answer_loss` divides by the answers of the whole step, so the passes' losses add up.
        """
        losses = []
        for one in passes_of(inputs):
            losses.append(super().training_step(model, one, *args, **kwargs))
            end_turn()
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Answer held-out rows, pass by pass; they are sorted as in passes, so they stay in order."""
        answer = super().prediction_step
        results = [answer(model, one, *args, **kwargs) for one in passes_of(inputs)]
        if len(results) == 1:
            return results[0]
        losses, outputs, _ = zip(*results, strict=True)
        answers = [len(one["labels"]) for one in passes_of(inputs)]
        loss = sum(map(operator.mul, losses, answers)) / sum(answers)
        return loss, functools.reduce(nested_concat, outputs), inputs["labels"]

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Return the Trainer's own loader."""
        loader = super().get_eval_dataloader(*args, **kwargs)
        _keep_workers(loader)
        return loader

    def get_train_dataloader(self) -> DataLoader:
        """Return the Trainer's own loader with the samplers of this room above its sampler."""
        loader = super().get_train_dataloader()
        _keep_workers(loader)
        micro_batches = self.args.gradient_accumulation_steps
        step_rows = self.args.train_batch_size * micro_batches
        seed = self.args.seed

        data = self.train_dataset
        rows: Rows = data.rows if isinstance(data, ShuffledOptions) else data
        order = loader.get_sampler()
        if isinstance(rows, WordedRows):
            order = DrawnWordings(order, rows, seed)
        if micro_batches > 1:
            order = SortedSteps(order, rows, step_rows)
        if isinstance(data, ShuffledOptions):
            order = ShuffledSteps(order, step_rows, seed)
        loader.set_sampler(order)
        return loader


def _keep_workers(loader: DataLoader) -> None:
    """Let a loader's processes live on when the run is asked to stop."""
    # accelerate's loader is one around another, which starts the processes
    inner = getattr(loader, "base_dataloader", loader)
    inner.worker_init_fn = functools.partial(quiet_worker, inner.worker_init_fn)


def make_trainer(
    model: PeftModel,
    config: Config,
    encoder: Encoder,
    train: pd.DataFrame,
    held_out: pd.DataFrame,
    checkpoints: Path,
    callbacks: Sequence[TrainerCallback],
    steps: int | None = None,
) -> StepTrainer:
    """Make the Trainer of one fold; the arguments are those of `train_fold`.

    Args:
        checkpoints: the folder of the Trainer's checkpoints.
        callbacks: what happens beside the steps.
        steps: to train for in place of the config's epochs.
    """
    letters = letter_token_ids(encoder.processor)
    arguments = training_arguments(config, checkpoints, judged=len(held_out) > 0)
    arguments.max_steps = steps or -1  # -1: all epochs
    # A second visible GPU would double the batch and the loss of a model that lies on one
    arguments._n_gpu = 1

    def keep_letters(outputs: torch.Tensor | tuple[Any, ...], _: torch.Tensor) -> torch.Tensor:
        return letter_logits(outputs, letters)

    most_tokens = row_tokens(config.text_tokens, encoder, in_all_wordings(config, train))
    if config.paraphrase:
        most_tokens += LONGER_INSTRUCTION  # as the plan counts
    held_out_rows = encoder.measured(held_out.to_dict("records"))
    # Little padding, and a batch too large for the memory comes first
    longest_first = sorted(held_out_rows, key=lambda row: row["length"], reverse=True)
    trainer = StepTrainer(
        model=model,
        args=arguments,
        data_collator=ExamplePasses(encoder.for_model(model), most_tokens),
        train_dataset=training_rows(config, encoder, train),
        eval_dataset=longest_first,
        compute_loss_func=answer_loss,
        # [B, 4] of [B, K, V]: the Trainer keeps the held-out rows' logits until all are scored
        preprocess_logits_for_metrics=keep_letters,
        compute_metrics=lambda prediction: held_out_scores(prediction, letters),
        callbacks=list(callbacks),
    )
    # It prints one line per step: the log file has them, and a notebook should not
    trainer.remove_callback(PrinterCallback)
    if arguments.fp16:
        trainer.accelerator.scaler = grad_scaler()
    return trainer


def training_arguments(
    config: Config, checkpoints: Path, *, judged: bool = True
) -> TrainingArguments:
    """Translate the config into the Trainer's words.

    Args:
        judged: score the held-out rows after each epoch and keep the best epoch's adapter.
    """
    gpu = torch.cuda.is_available()
    workers = config.num_workers
    prefetch = None
    if workers:
        # The Trainer takes all micro-batches of a step before it computes; a GPU waits for those
        # not made by then
        prefetch = max(2, math.ceil(config.accumulation / workers))
    return TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=config.micro_batch_rows,
        per_device_eval_batch_size=config.score_batch_rows,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of the steps
        max_grad_norm=config.max_grad_norm,
        optim="paged_adamw_32bit" if config.use_cpu_offload else "adamw_torch",
        fp16=gpu and config.use_amp,
        use_cpu=not gpu,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=prefetch,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,  # the collator reads them
        label_names=["labels"],
        eval_strategy="epoch" if judged else "no",
        save_strategy="epoch",
        load_best_model_at_end=judged,
        metric_for_best_model="log_loss",
        greater_is_better=False,
        logging_steps=1,  # TrainLog and NonFiniteGuard see each step
        logging_nan_inf_filter=False,  # show a NaN loss instead of the mean so far
        disable_tqdm=True,
        report_to="none",  # `Tracking` reports
        seed=config.seed,
    )

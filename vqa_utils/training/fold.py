"""One fold: transformers' Trainer on a 4-bit base with LoRA, and the adapter of the best epoch."""

import hashlib
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import EvalPrediction, PrinterCallback, TrainingArguments

from vqa_utils.artifacts.files import ids_hash, sha256, write_json
from vqa_utils.artifacts.fold_settings import resumable, rungs_behind
from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.config import Config
from vqa_utils.metrics import accuracy, log_loss
from vqa_utils.model.encoder import IGNORED, Encoder, letter_token_ids
from vqa_utils.model.fp16 import grad_scaler
from vqa_utils.model.loading import save_adapter
from vqa_utils.prompts import LETTERS
from vqa_utils.training._batches import StepTrainer, training_rows, with_lengths
from vqa_utils.training._callbacks import (
    FreeMemory,
    NonFiniteGuard,
    TrainLog,
    peak_memory_gib,
    reset_peak_memory,
)


def train_fold(
    model: PeftModel,
    config: Config,
    encoder: Encoder,
    train: pd.DataFrame,
    held_out: pd.DataFrame,
    paths: FoldPaths,
) -> dict[str, Any]:
    """Train one adapter and keep its best epoch, by log loss on the held-out rows; where there are none (a refit), its last.

    A run that was cut off goes on from its last checkpoint, the end of an epoch.

    Args:
        model: a fresh base with LoRA layers.
        encoder: makes the batches.
        train, held_out: the challenge's rows, with `answer`; `held_out` may be empty. Under `paraphrase`, those to train on come
            with `paraphrases` too.
        paths: where the fold's adapter, log and meta.json go; meta.json is written last.

    Returns:
        What meta.json holds: rows, trainable parameters, each epoch's scores, the best epoch (or None), seconds, memory.

    Raises:
        TrainingError: no step has finite gradients any more.
    """
    start, guard = time.time(), NonFiniteGuard()
    reset_peak_memory()
    letters = letter_token_ids(encoder.processor)
    checkpoints = paths.checkpoints / training_key(
        resumable(config, rungs_behind(paths.rungs, config)), train
    )
    arguments = training_arguments(config, checkpoints, judged=len(held_out) > 0)
    arguments._n_gpu = (
        1  # a second visible GPU would double the batch and the loss of a model that lies on one
    )
    judged = with_lengths(held_out.to_dict("records"), encoder)
    trainer = StepTrainer(
        model=model,
        args=arguments,
        data_collator=encoder.examples,
        train_dataset=training_rows(config, encoder, train),
        eval_dataset=sorted(judged, key=lambda row: row["length"], reverse=True),
        compute_loss_func=answer_loss,
        preprocess_logits_for_metrics=lambda outputs, labels: letter_logits(outputs, letters),
        compute_metrics=lambda prediction: held_out_scores(prediction, letters),
        callbacks=[TrainLog(paths.train_log), guard, FreeMemory()],
    )
    trainer.remove_callback(
        PrinterCallback
    )  # the log file says it, and a notebook should not hold a line a step
    if arguments.fp16:
        trainer.accelerator.scaler = grad_scaler()
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(checkpoints))
    save_adapter(model, config, paths.adapter)
    epochs = epoch_scores(trainer.state.log_history)
    meta = {
        "train_rows": len(train),
        "held_out_rows": len(held_out),
        "held_out_ids": ids_hash(held_out["id"]),
        "trainable_parameters": trainable_parameters(model),
        "steps": trainer.state.global_step,
        "skipped_steps": guard.skipped,
        "epochs": epochs,
        "best_epoch": min(epochs, key=lambda scores: scores["log_loss"])["epoch"]
        if epochs
        else None,
        "seconds": round(time.time() - start, 1),
        "peak_memory_gib": peak_memory_gib(),
        "adapter_sha256": sha256(paths.adapter),
    }
    write_json(paths.meta, meta)
    shutil.rmtree(paths.checkpoints, ignore_errors=True)  # optimizer states; the adapter is kept
    return meta


def training_key(config: Config, train: pd.DataFrame) -> str:
    """Names the checkpoints of this training alone: other settings, rows or answers start anew."""
    return hashlib.sha256((config.training_hash + train.to_csv(index=False)).encode()).hexdigest()[
        :12
    ]


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end (the Trainer writes its state last); torn ones are removed."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / "trainer_state.json").exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def training_arguments(
    config: Config, checkpoints: Path, *, judged: bool = True
) -> TrainingArguments:
    """The config in the Trainer's words; `judged` on held-out rows after each epoch, of which the best is then kept."""
    gpu, workers = torch.cuda.is_available(), config.num_workers
    return TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=config.micro_batch,
        per_device_eval_batch_size=config.score_batch,
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
        # The Trainer takes all micro-batches of a step before it computes: what is not made by then, a GPU waits for
        dataloader_prefetch_factor=max(2, math.ceil(config.accumulation / workers))
        if workers
        else None,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,  # the collator reads them
        label_names=["labels"],
        eval_strategy="epoch" if judged else "no",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=judged,
        metric_for_best_model="log_loss",
        greater_is_better=False,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number is shown, not replaced by the mean
        disable_tqdm=True,
        report_to=list(config.report_to) or "none",
        seed=config.seed,
    )


def answer_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy summed over the answer tokens, divided by their number in the whole accumulated batch.

    outputs.logits: [B, K, V] at the last K positions, the first of them the one before the letter; labels: [B, L].
    """
    logits = outputs.logits[:, :-1].float()
    targets = labels[:, -logits.shape[1] :].to(logits.device)
    loss = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss / (
        num_items_in_batch if num_items_in_batch is not None else (targets != IGNORED).sum()
    )


def letter_logits(outputs: torch.Tensor | tuple, letters: list[int]) -> torch.Tensor:
    """The letters' logits [B, 4] at the first kept position; some models put other outputs behind the logits."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits[:, 0, letters]


def held_out_scores(prediction: EvalPrediction, letters: list[int]) -> dict[str, float]:
    """Accuracy and log loss from the letters' logits [N, 4] and the labels [N, L], whose one letter is not ignored."""
    labels = prediction.label_ids
    answers = pd.Series([LETTERS[letters.index(row[row != IGNORED][0])] for row in labels])
    probs = torch.from_numpy(prediction.predictions).double().softmax(-1).numpy()
    frame = pd.DataFrame(probs, columns=list(LETTERS))
    return {"accuracy": accuracy(frame, answers), "log_loss": log_loss(frame, answers)}


def epoch_scores(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Each epoch's scores on the held-out rows, from the Trainer's log."""
    return [
        {
            "epoch": round(entry["epoch"], 2),
            "accuracy": entry["eval_accuracy"],
            "log_loss": entry["eval_log_loss"],
        }
        for entry in history
        if "eval_log_loss" in entry
    ]


def describe_epochs(meta: dict[str, Any]) -> str:
    """Which epoch's adapter was kept, and what the held-out rows say of it, in words.

    Args:
        meta: what `train_fold` returns.
    """
    if not meta["epochs"]:
        return "No row is held out, so that no validation says which epoch is best: the adapter is the last one's."
    best = next(scores for scores in meta["epochs"] if scores["epoch"] == meta["best_epoch"])
    return f"Best epoch {best['epoch']:g}: held-out accuracy {best['accuracy']:.3f}, log loss {best['log_loss']:.3f} nats."


def trainable_parameters(model: PeftModel) -> int:
    """How many weights learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

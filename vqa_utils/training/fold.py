"""Train one fold: a 4-bit base with LoRA, by transformers' Trainer; keep its best epoch."""

import shutil
import time
from typing import Any

import pandas as pd
from peft import PeftModel

from vqa_utils.artifacts.files import ids_hash, sha256, write_json
from vqa_utils.artifacts.fold_settings import checkpoint_settings
from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.artifacts.stop import TRAINING, stop_if_asked
from vqa_utils.config import Config
from vqa_utils.model.adapter import save_adapter
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.lending.attach import check_lent_base
from vqa_utils.training._callbacks import (
    FreeMemory,
    NonFiniteGuard,
    TrainLog,
    peak_memory_gib,
    reset_peak_memory,
)
from vqa_utils.training._checkpoints import Checkpoints, training_key
from vqa_utils.training._tracking import Tracking
from vqa_utils.training._trainer import make_trainer

EpochScores = dict[str, float]  # `epoch`, `accuracy`, `log_loss` (nats) on the held-out rows


def train_fold(
    model: PeftModel,
    config: Config,
    encoder: Encoder,
    train: pd.DataFrame,
    held_out: pd.DataFrame,
    paths: FoldPaths,
) -> dict[str, Any]:
    """Train one adapter and keep its best epoch, by log loss on the held-out rows.

    Without held-out rows (a refit) the last epoch is kept. A training that was cut off goes on from
    its newest whole checkpoint: the end of an epoch, or the step at which it was asked to stop.

    Args:
        model: a fresh base with LoRA layers.
        encoder: makes the batches.
        train, held_out: the challenge's rows, with `answer`; `held_out` may be empty. Under
            `paraphrase`, `train` has `paraphrases` too.
        paths: of the fold's adapter, log and meta.json; meta.json is written last.

    Returns:
        The content of meta.json: rows, trainable parameters, each epoch's scores, the best epoch
        (or None), seconds, memory.

    Raises:
        TrainingError: no step has finite gradients any more.
        StopRequested: the run was asked to stop; there is a checkpoint of its last step.
        RunError: the lent base has changed.
    """
    stop_if_asked(TRAINING)  # while the base was loaded
    start = time.time()
    reset_peak_memory()
    folder = paths.checkpoints / training_key(checkpoint_settings(paths, config), train)
    checkpoints = Checkpoints(folder)
    guard = NonFiniteGuard()
    log = TrainLog(paths.train_log)
    callbacks = [checkpoints, log, guard, FreeMemory(), Tracking(config, paths)]
    trainer = make_trainer(model, config, encoder, train, held_out, folder, callbacks)
    trainer.train(resume_from_checkpoint=checkpoints.newest())
    check_lent_base()

    # With held-out rows, the Trainer has put the best epoch's weights back by now
    save_adapter(model, config, paths.adapter)
    epochs = epoch_scores(trainer.state.log_history)
    meta = {
        "train_rows": len(train),
        "held_out_rows": len(held_out),
        "held_out_ids": ids_hash(held_out["id"]),  # compared with folds.csv before scoring
        "trainable_parameters": trainable_parameters(model),
        "steps": trainer.state.global_step,
        "skipped_steps": guard.skipped,
        "epochs": epochs,
        "best_epoch": best_of(epochs)["epoch"] if epochs else None,
        "seconds": round(time.time() - start, 1),  # of this process: not those before a resume
        "seconds_per_held_out_row": seconds_per_row(trainer.state.log_history),
        "peak_memory_gib": peak_memory_gib(),  # by GPU
        "adapter_sha256": sha256(paths.adapter),
    }
    write_json(paths.meta, meta)
    shutil.rmtree(paths.checkpoints, ignore_errors=True)  # optimizer states; the adapter is kept
    return meta


def epoch_scores(history: list[dict[str, float]]) -> list[EpochScores]:
    """Pick each epoch's scores on the held-out rows from the Trainer's log."""
    epochs = []
    for entry in history:
        if "eval_log_loss" not in entry:
            continue
        scores = {
            "epoch": round(entry["epoch"], 2),
            "accuracy": entry["eval_accuracy"],
            "log_loss": entry["eval_log_loss"],
        }
        epochs.append(scores)
    return epochs


def seconds_per_row(history: list[dict[str, float]]) -> float | None:
    """Return the seconds of a held-out row in the latest evaluation; None without any."""
    for entry in reversed(history):
        if entry.get("eval_samples_per_second"):
            return round(1 / entry["eval_samples_per_second"], 5)
    return None


def best_of(epochs: list[EpochScores]) -> EpochScores:
    """Return the epoch with the least log loss, as the Trainer chooses its best checkpoint."""
    return min(epochs, key=lambda scores: scores["log_loss"])


def describe_epochs(meta: dict[str, Any]) -> str:
    """Describe the epoch that was kept and its scores, in a sentence.

    Args:
        meta: the result of `train_fold`.
    """
    if not meta["epochs"]:
        return "No row is held out, so no epoch is known to be best: the adapter is the last one's."
    best = best_of(meta["epochs"])
    return (
        f"Best epoch {best['epoch']:g}: held-out accuracy {best['accuracy']:.3f}, "
        f"log loss {best['log_loss']:.3f} nats."
    )


def trainable_parameters(model: PeftModel) -> int:
    """Count the weights that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

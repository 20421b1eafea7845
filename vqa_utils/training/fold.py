"""Train one fold: a 4-bit base with LoRA, by transformers' Trainer; keep its best epoch."""

import shutil
import statistics
import time
from typing import Any

import pandas as pd
from peft import PeftModel

from vqa_utils.artifacts.files import ids_hash, read_json, sha256, write_json
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
    TrainingError,
    TrainLog,
    peak_memory_gib,
    reset_peak_memory,
)
from vqa_utils.training._checkpoints import Checkpoints, training_key
from vqa_utils.training._evaluations import Evaluations
from vqa_utils.training._tracking import Tracking
from vqa_utils.training._trainer import make_trainer

# Of an evaluation: `epoch`, `step`, and `accuracy`, `log_loss` (nats) on the held-out rows
EpochScores = dict[str, float]


def train_fold(
    model: PeftModel,
    config: Config,
    encoder: Encoder,
    train: pd.DataFrame,
    held_out: pd.DataFrame,
    paths: FoldPaths,
) -> dict[str, Any]:
    """Train one adapter and keep its best epoch, by log loss on the held-out rows.

    Without held-out rows (a refit) the last step is kept; under `eval_every` or `patience` it trains
    for as many steps as the best adapters of the folds had, in the mean. A training that was cut off
    goes on from its newest whole checkpoint: an evaluation, or the step at which it was asked to
    stop.

    Args:
        model: a fresh base with LoRA layers.
        encoder: makes the batches.
        train, held_out: the challenge's rows, with `answer`; `held_out` may be empty. Under
            `paraphrase`, `train` has `paraphrases` too.
        paths: of the fold's adapter, log and meta.json; meta.json is written last.

    Returns:
        The content of meta.json: rows, trainable parameters, the scores of each evaluation, the
        best one's epoch and step (or None), seconds, memory.

    Raises:
        TrainingError: no step has finite gradients any more, or a refit comes before the folds.
        StopRequested: the run was asked to stop; there is a checkpoint of its last step.
        RunError: the lent base has changed.
    """
    stop_if_asked(TRAINING)  # while the base was loaded
    start = time.time()
    reset_peak_memory()
    steps = None if len(held_out) else _steps_of_refit(paths, config)
    folder = paths.checkpoints / training_key(checkpoint_settings(paths, config), train, steps)
    evaluations = Evaluations(config.eval_every, config.patience)
    checkpoints = Checkpoints(folder, evaluations)
    guard = NonFiniteGuard()
    log = TrainLog(paths.train_log)
    callbacks = [checkpoints, log, guard, FreeMemory(), Tracking(config, paths)]
    if len(held_out):
        callbacks.append(evaluations)
    trainer = make_trainer(model, config, encoder, train, held_out, folder, callbacks, steps)
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
        "planned_steps": trainer.state.max_steps,
        "skipped_steps": guard.skipped,
        "epochs": epochs,
        "best_epoch": best_of(epochs)["epoch"] if epochs else None,
        "best_step": best_of(epochs)["step"] if epochs else None,
        "seconds": round(time.time() - start, 1),  # of this process: not those before a resume
        "seconds_per_held_out_row": seconds_per_row(trainer.state.log_history),
        "peak_memory_gib": peak_memory_gib(),  # by GPU
        "adapter_sha256": sha256(paths.adapter),
    }
    write_json(paths.meta, meta)
    shutil.rmtree(paths.checkpoints, ignore_errors=True)  # optimizer states; the adapter is kept
    return meta


def _steps_of_refit(paths: FoldPaths, config: Config) -> int | None:
    """Return the mean step of the folds' best adapters; None to train all epochs.

    Raises:
        TrainingError: a fold is not trained yet.
    """
    if not config.ends_at_best:
        return None
    folds = [paths.beside(number) for number in config.fold_numbers]
    missing = [fold.folder.name for fold in folds if not fold.meta.exists()]
    if missing:
        raise TrainingError(
            f"refit: expected the folds to be trained before it, as it trains for the steps of their "
            f"best adapters (eval_every, patience), found none of {', '.join(missing)}"
        )
    return round(statistics.mean(read_json(fold.meta)["best_step"] for fold in folds))


def epoch_scores(history: list[dict[str, float]]) -> list[EpochScores]:
    """Pick each evaluation's scores on the held-out rows from the Trainer's log."""
    epochs = []
    for entry in history:
        if "eval_log_loss" not in entry:
            continue
        scores = {
            "epoch": round(entry["epoch"], 2),
            "step": entry["step"],
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
    end = ""
    if meta["steps"] < meta["planned_steps"]:
        end = f" It ended after {meta['steps']} of {meta['planned_steps']} steps: it got no better."
    return (
        f"Best epoch {best['epoch']:g}: held-out accuracy {best['accuracy']:.3f}, "
        f"log loss {best['log_loss']:.3f} nats.{end}"
    )


def trainable_parameters(model: PeftModel) -> int:
    """Count the weights that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

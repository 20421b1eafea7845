"""Compute the loss on the answer's letter, and the scores of held-out rows."""

from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from transformers import EvalPrediction

from vqa_utils.metrics import accuracy, log_loss
from vqa_utils.model.encoder import IGNORED
from vqa_utils.prompts import LETTERS


def answer_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Sum the cross-entropy over the answer tokens and divide it by their number.

    Args:
        outputs: with `logits` [B, K, V] at the last K places, from the one before the letter on.
        labels: [B, L], IGNORED but at the letter.
        num_items_in_batch: the answer tokens of the whole optimizer step, over all its
            micro-batches; None counts those in `labels`.
    """
    logits = outputs.logits[:, :-1].float()  # [B, K - 1, V], each at the place before its target
    targets = labels[:, -logits.shape[1] :].to(logits.device)  # [B, K - 1]
    loss = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORED).sum()
    return loss / num_items_in_batch


def letter_logits(outputs: torch.Tensor | tuple[Any, ...], letters: list[int]) -> torch.Tensor:
    """Return the letters' logits [B, 4] at the first kept place.

    Some models put other outputs after the logits [B, K, V].
    """
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits[:, 0, letters]


def held_out_scores(prediction: EvalPrediction, letters: list[int]) -> dict[str, float]:
    """Return accuracy and log loss of held-out rows.

    Args:
        prediction: the letters' logits [N, 4], and labels [N, L] with one letter per row.
        letters: the letters' token ids.
    """
    # The Trainer pads batches to one L with -100, which is IGNORED
    labels = np.asarray(prediction.label_ids)  # [N, L]
    answer_tokens = labels[labels != IGNORED]  # [N]
    answers = pd.Series([LETTERS[letters.index(token)] for token in answer_tokens])
    logits = torch.from_numpy(prediction.predictions)
    probs = pd.DataFrame(logits.double().softmax(-1).numpy(), columns=list(LETTERS))
    return {"accuracy": accuracy(probs, answers), "log_loss": log_loss(probs, answers)}

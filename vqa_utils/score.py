"""Option probabilities: one forward pass a batch, the four letters' logits at the last position, a softmax over them."""

import contextlib
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from rich.progress import track

from vqa_utils.encode import Encoder, letter_token_ids
from vqa_utils.prompts import LETTERS, question_text


def autocast(device: torch.device, use_amp: bool) -> contextlib.AbstractContextManager:
    """fp16 autocast on a GPU, nothing on a CPU."""
    return torch.autocast("cuda", torch.float16, enabled=use_amp) if device.type == "cuda" else contextlib.nullcontext()


@torch.inference_mode()
def score_options(
    model: torch.nn.Module,
    encoder: Encoder,
    rows: pd.DataFrame,
    *,
    batch_size: int,
    use_amp: bool = True,
    blank: bool = False,
    progress: Callable = track,
) -> pd.DataFrame:
    """The probability of each option of each row.

    Args:
        model: in eval mode; its answers are not looked up anywhere, and a column `answer` is not used.
        rows: `id`, `path`, `question`, `a` to `d`.
        batch_size: rows a forward pass; rows of like length go together, so that little is padding.
        blank: show grey pictures (the no-image baseline).
        progress: wraps the batches; `rich.progress.track` by default.

    Returns:
        `id`, `a` to `d`, in the order of `rows`; each row sums to 1.
    """
    letters = torch.tensor(letter_token_ids(encoder.processor), device=model.device)
    records = rows.drop(columns="answer", errors="ignore").to_dict("records")
    longest_first = sorted(range(len(records)), key=lambda i: -len(question_text(records[i])))
    starts = range(0, len(records), batch_size)
    probs = np.empty((len(records), len(LETTERS)))
    for start in progress(starts, description="scoring"):
        chosen = longest_first[start : start + batch_size]
        batch = encoder.questions([records[i] for i in chosen], blank=blank).to(model.device)
        with autocast(model.device, use_amp):
            logits = model(**batch, logits_to_keep=1).logits[:, -1]  # [B, V]
        probs[chosen] = logits[:, letters.to(logits.device)].double().softmax(-1).cpu().numpy()
    return pd.concat([rows[["id"]].reset_index(drop=True), pd.DataFrame(probs, columns=list(LETTERS))], axis=1)

"""Option probabilities: one forward pass a batch, the four letters' logits at the last position, a softmax over them.

With several option orders, the mean over them, each option's probability followed to where it stands.
"""

import contextlib
import functools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import BatchFeature

from vqa_utils.artifacts import ArtifactError, ids_hash, read_json, write_probabilities
from vqa_utils.config import Config
from vqa_utils.data import load_challenge, load_test
from vqa_utils.encode import Encoder, letter_token_ids
from vqa_utils.folds import held_out_rows
from vqa_utils.orders import can_share, shifts_of, tree_mask, turned
from vqa_utils.paths import FoldPaths, RunPaths
from vqa_utils.prompts import LETTERS


def questions_of_fold(paths: RunPaths, config: Config, fold: int, predict: str = "") -> tuple[Path, dict[str, pd.DataFrame]]:
    """The rows that a fold's model scores, without their answers: `oof` (held out, where it holds out any) and `test`.

    Args:
        predict: a folder with another test.csv, which is then the only set.

    Returns:
        The folder that the images are relative to, and the rows by set.

    Raises:
        ArtifactError: the fold's adapter held out other rows than folds.csv says now.
    """
    if predict:
        return Path(predict), {"test": load_test(Path(predict))[0]}
    challenge = load_challenge(config)
    held_out = held_out_rows(paths.folds, challenge.train, config, fold)
    meta = read_json(paths.fold(fold).meta) if paths.fold(fold).meta.exists() else {}
    if meta.get("held_out_ids") != ids_hash(challenge.train["id"][held_out]):
        raise ArtifactError(
            f"{paths.fold(fold).meta}: expected an adapter that held out the rows of fold {fold} in folds.csv, found one that "
            "held out others, and may have trained on these; run notebook 03_train_fold again"
        )
    oof = {"oof": challenge.train[held_out].drop(columns="answer")} if held_out.any() else {}
    return challenge.folder, oof | {"test": challenge.test}


def score_fold(
    model: PeftModel, encoder: Encoder, questions: dict[str, pd.DataFrame], config: Config, out: FoldPaths
) -> dict[str, pd.DataFrame]:
    """Score each set of rows and write `probs_<set>.csv`; with `config.baselines`, the held-out rows twice more.

    The baselines are `zero_shot`, the base without its adapter, and `blank`, the adapter with grey pictures.
    """
    options = {
        "batch_size": config.score_batch, "orders": config.tta, "use_amp": config.use_amp, "num_workers": config.num_workers,
    }  # fmt: skip
    probs = {name: score_options(model, encoder, rows, **options) for name, rows in questions.items()}
    if config.baselines and "oof" in questions:
        with model.disable_adapter():
            probs["zero_shot"] = score_options(model, encoder, questions["oof"], **options)
        probs["blank"] = score_options(model, encoder, questions["oof"], blank=True, **options)
    for name, frame in probs.items():
        write_probabilities(out.probs(name), frame)
    return probs


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
    orders: int = 1,
    use_amp: bool = True,
    blank: bool = False,
    num_workers: int = 0,
) -> pd.DataFrame:
    """The probability of each option of each row.

    Args:
        model: in eval mode; its answers are not looked up anywhere, and a column `answer` is not used.
        rows: `id`, `path`, `question`, `a` to `d`.
        batch_size: rows a forward pass; rows of like length go together, so that little is padding.
        orders: 1, 2 or 4 cyclic orders of the options, whose probabilities are averaged.
        blank: show grey pictures (the no-image baseline).
        num_workers: processes that decode images while the model computes; 0 decodes in this one.

    Returns:
        `id`, `a` to `d`, in the order of `rows`; each row sums to 1.
    """
    letters = torch.tensor(letter_token_ids(encoder.processor), device=model.device)
    records = rows.drop(columns="answer", errors="ignore").to_dict("records")
    longest_first = sorted(range(len(records)), key=encoder.lengths(records).__getitem__, reverse=True)
    batches = [longest_first[start : start + batch_size] for start in range(0, len(records), batch_size)]
    shifts = shifts_of(orders)
    encode = functools.partial(_batches, encoder, shifts=shifts, share=can_share(model), blank=blank)
    probs = np.empty((len(records), len(LETTERS)))
    loader = DataLoader(records, batch_sampler=batches, collate_fn=encode, num_workers=num_workers)
    for chosen, passes in zip(batches, loader, strict=True):
        logits = torch.cat([last_logits(model, batch, use_amp) for batch in passes], 1)  # [B, orders, V]
        of_letters = logits[..., letters.to(logits.device)].double().softmax(-1)
        of_options = [of_letters[:, number].roll(shift, -1) for number, shift in enumerate(shifts)]
        probs[chosen] = torch.stack(of_options).mean(0).cpu().numpy()
    return pd.concat([rows[["id"]].reset_index(drop=True), pd.DataFrame(probs, columns=list(LETTERS))], axis=1)


def _batches(encoder: Encoder, rows: list[dict], *, shifts: tuple[int, ...], share: bool, blank: bool) -> list[BatchFeature]:
    """What goes through the model for some rows: all orders at once where they can share, else one batch an order."""
    if share and len(shifts) > 1:
        return [encoder.orders(rows, shifts, blank=blank)]
    return [encoder.questions([turned(row, shift) for row in rows], blank=blank) for shift in shifts]


def last_logits(model: torch.nn.Module, batch: BatchFeature, use_amp: bool) -> torch.Tensor:
    """[B, orders in the batch, V] at the last position of each order."""
    inputs = {"logits_to_keep": 1, **batch.to(model.device)}
    if "segments" in inputs:
        inputs["attention_mask"] = tree_mask(inputs.pop("segments"))
    with autocast(model.device, use_amp):
        return model(**inputs).logits

"""Option probabilities: one forward pass a batch, the four letters' logits at the last position, a softmax over them.

A row may be scored in several cyclic orders of its options. Its probabilities are then the mean over
the orders, each option followed to the place where it stands.
"""

import contextlib
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import BatchFeature

from vqa_utils.artifacts.files import ArtifactError, ids_hash, read_json
from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.artifacts.probabilities import write_orders, write_probabilities
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge, load_test
from vqa_utils.data.fold_rows import rows_of_fold
from vqa_utils.metrics import option_matrix
from vqa_utils.model.encoder import Encoder, letter_token_ids
from vqa_utils.prompts import LETTERS, cyclic_order, reorder_options
from vqa_utils.scoring._orders import can_share, encode_orders, shifts_of, tree_mask


def questions_of_fold(
    paths: RunPaths, config: Config, fold: int, predict: str = ""
) -> tuple[Path, dict[str, pd.DataFrame]]:
    """The rows that a fold's model scores, without their answers: `oof` (held out, where it holds out any) and `test`.

    Args:
        predict: a folder with another test.csv, which is then the only set.

    Returns:
        The folder that the images are relative to, and the rows by set.

    Raises:
        ArtifactError: the fold's adapter held out other rows than folds.csv says now.
    """
    if predict:
        test, _ = load_test(Path(predict), paths.predicting(predict).images)
        return Path(predict), {"test": test}
    challenge = load_challenge(config)
    held_out = rows_of_fold(paths, config, challenge, fold).held_out
    meta = read_json(paths.fold(fold).meta) if paths.fold(fold).meta.exists() else {}
    if meta.get("held_out_ids") != ids_hash(held_out["id"]):
        raise ArtifactError(
            f"{paths.fold(fold).meta}: expected an adapter that held out the rows of fold {fold} in folds.csv, found one that "
            "held out others, and may have trained on these; run notebook 03_train_fold again"
        )
    oof = {"oof": held_out.drop(columns="answer")} if len(held_out) else {}
    return challenge.folder, oof | {"test": challenge.test}


def score_fold(
    model: PeftModel,
    encoder: Encoder,
    questions: dict[str, pd.DataFrame],
    config: Config,
    out: FoldPaths,
) -> dict[str, pd.DataFrame]:
    """Score each set of rows and write `probs_<set>.csv`, and of several orders also `probs_<set>_orders.csv`.

    With `config.baselines`, the held-out rows are scored twice more: `zero_shot` by the base without its adapter, and `blank` by
    the adapter with grey pictures.
    """
    options = {
        "batch_size": config.score_batch, "orders": config.tta, "use_amp": config.use_amp,
        "num_workers": config.num_workers,
    }  # fmt: skip
    by_order = {
        name: score_orders(model, encoder, rows, **options) for name, rows in questions.items()
    }
    probs = {name: averaged(of_rows) for name, of_rows in by_order.items()}
    if config.baselines and "oof" in questions:
        with model.disable_adapter():
            probs["zero_shot"] = score_options(model, encoder, questions["oof"], **options)
        probs["blank"] = score_options(model, encoder.blanked(), questions["oof"], **options)
    for name, frame in probs.items():
        write_probabilities(out.probs(name), frame)
    for name, of_rows in by_order.items():
        write_orders(out.orders(name), of_rows)
    return probs


def autocast(device: torch.device, use_amp: bool) -> contextlib.AbstractContextManager:
    """fp16 autocast on a GPU, nothing on a CPU."""
    return (
        torch.autocast("cuda", torch.float16, enabled=use_amp)
        if device.type == "cuda"
        else contextlib.nullcontext()
    )


def score_options(
    model: torch.nn.Module, encoder: Encoder, rows: pd.DataFrame, **options: Any
) -> pd.DataFrame:
    """The probability of each option of each row, the mean over its orders.

    Args:
        model: in eval mode; its answers are not looked up anywhere, and a column `answer` is not used.
        rows: `id`, `path`, `question`, `a` to `d`.
        options: those of `score_orders`.

    Returns:
        `id`, `a` to `d`, in the order of `rows`; each row sums to 1.
    """
    return averaged(score_orders(model, encoder, rows, **options))


def averaged(orders: pd.DataFrame) -> pd.DataFrame:
    """`id`, `a` to `d`: the mean over the orders that `score_orders` gives."""
    rows = orders["id"].nunique()
    mean = (
        option_matrix(orders).reshape(-1, rows, len(LETTERS)).mean(axis=0)
    )  # [orders, N, 4] -> [N, 4]
    return pd.concat([orders[["id"]].head(rows), pd.DataFrame(mean, columns=list(LETTERS))], axis=1)


@torch.inference_mode()
def score_orders(
    model: torch.nn.Module,
    encoder: Encoder,
    rows: pd.DataFrame,
    *,
    batch_size: int,
    orders: int = 1,
    use_amp: bool = True,
    num_workers: int = 0,
) -> pd.DataFrame:
    """What each order of a row's options says of them.

    Args:
        model: as of `score_options`.
        rows: as of `score_options`.
        batch_size: rows a forward pass; rows of like length go together, so that little is padding.
        orders: 1, 2 or 4 cyclic orders of the options.
        num_workers: processes that decode images while the model computes; 0 decodes in this one.

    Returns:
        `order` (by how many places the options were turned), `id`, and `a` to `d`, the row's own
        options in any order: order after order, each in the order of `rows`.
    """
    letters = torch.tensor(letter_token_ids(encoder.processor), device=model.device)
    records = rows.drop(columns="answer", errors="ignore").to_dict("records")
    longest_first = sorted(
        range(len(records)), key=encoder.lengths(records).__getitem__, reverse=True
    )
    batches = [
        longest_first[start : start + batch_size] for start in range(0, len(records), batch_size)
    ]
    shifts = shifts_of(orders)
    encode = functools.partial(_batches, encoder, shifts=shifts, share=can_share(model))
    loader = DataLoader(records, batch_sampler=batches, collate_fn=encode, num_workers=num_workers)
    probs = np.empty((len(shifts), len(records), len(LETTERS)))
    for chosen, passes in zip(batches, loader, strict=True):
        logits = torch.cat(
            [last_logits(model, batch, use_amp) for batch in passes], 1
        )  # [B, orders, V]
        at_places = (
            logits[..., letters.to(logits.device)].double().softmax(-1).cpu().numpy()
        )  # [B, orders, 4]
        for number, shift in enumerate(shifts):
            probs[number][np.ix_(chosen, cyclic_order(shift))] = at_places[:, number]
    index = pd.MultiIndex.from_product([shifts, rows["id"]], names=["order", "id"])
    return pd.DataFrame(probs.reshape(-1, len(LETTERS)), index, columns=list(LETTERS)).reset_index()


def _batches(
    encoder: Encoder, rows: list[dict], *, shifts: tuple[int, ...], share: bool
) -> list[BatchFeature]:
    """What goes through the model for some rows: all orders at once where they can share, else one batch an order."""
    if share and len(shifts) > 1:
        return [encode_orders(encoder, rows, shifts)]
    return [
        encoder.questions([reorder_options(row, cyclic_order(shift)) for row in rows])
        for shift in shifts
    ]


def last_logits(model: torch.nn.Module, batch: BatchFeature, use_amp: bool) -> torch.Tensor:
    """[B, orders in the batch, V] at the last position of each order."""
    inputs = {"logits_to_keep": 1, **batch.to(model.device)}
    if "segments" in inputs:
        inputs["attention_mask"] = tree_mask(inputs.pop("segments"))
    with autocast(model.device, use_amp):
        return model(**inputs).logits

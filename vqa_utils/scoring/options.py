"""Compute rows' option probabilities: a softmax over four letters' logits, last position.

A row may be scored in several cyclic orders of its options. Its probabilities are then the mean
over the orders; each option is followed to its place in an order.
"""

import contextlib
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from transformers import BatchFeature

from vqa_utils.artifacts.stop import SCORING, stop_if_asked, tell_by_hand
from vqa_utils.config import Config
from vqa_utils.metrics import option_matrix
from vqa_utils.model.encoder import Encoder, letter_token_ids
from vqa_utils.model.pass_size import PassSize, row_tokens
from vqa_utils.prompts import LETTERS, cyclic_order
from vqa_utils.scoring._batches import EncodedPasses, loader_of
from vqa_utils.scoring._in_flight import in_flight
from vqa_utils.scoring._orders import can_share, shifts_of, tree_mask
from vqa_utils.setting_types import AUTO, CountOrAuto


@dataclass(frozen=True)
class ScoringSettings:
    """How rows are scored; nothing here but `orders` changes a probability beyond rounding."""

    batch_size: int
    """Rows per forward pass."""
    text_tokens: CountOrAuto = AUTO
    """Of a row that is no outlier; "auto" looks at the rows."""
    orders: int = 1
    """1, 2 or 4 cyclic orders of the options."""
    use_amp: bool = True
    """fp16 autocast on a GPU."""
    num_workers: int = 0
    """Processes that decode images while the model computes; 0 decodes in this one."""

    @classmethod
    def of_run(cls, config: Config) -> "ScoringSettings":
        """Take the settings from a run's.

        Raises:
            ConfigError: score_batch is still "auto".
        """
        return cls(
            config.score_batch_rows,
            config.text_tokens,
            config.tta,
            config.use_amp,
            config.num_workers,
        )


def score_options(
    model: torch.nn.Module, encoder: Encoder, rows: pd.DataFrame, settings: ScoringSettings
) -> pd.DataFrame:
    """Return the probability of each option of each row, the mean over its orders.

    Args:
        model: in eval mode.
        rows: `id`, `path`, `question`, `a` to `d`. A column `answer` is not used.

    Returns:
        `id`, `a` to `d`, in the order of `rows`; each row sums to 1.
    """
    return averaged(score_orders(model, encoder, rows, settings))


def averaged(orders: pd.DataFrame) -> pd.DataFrame:
    """Average what `score_orders` returns over the orders: `id`, `a` to `d`."""
    count = orders["id"].nunique()  # N
    by_order = option_matrix(orders).reshape(-1, count, len(LETTERS))  # [orders, N, 4]
    mean = pd.DataFrame(by_order.mean(axis=0), columns=list(LETTERS))  # [N, 4]
    ids = orders[["id"]].head(count)  # order after order: the first N lines are one order
    return pd.concat([ids, mean], axis=1)


def score_orders(
    model: torch.nn.Module, encoder: Encoder, rows: pd.DataFrame, settings: ScoringSettings
) -> pd.DataFrame:
    """Return the option probabilities of each row in each order.

    Args:
        model: as in `score_options`.
        rows: as in `score_options`.

    Returns:
        `order` (by how many places the options were turned), `id`, and `a` to `d`, the row's own
        options in any order: order after order, each in the order of `rows`.

    Raises:
        StopRequested: the run was asked to stop.
    """
    # Turned options have nearly the same number of tokens: one order stands for all
    records = encoder.measured(rows.drop(columns="answer", errors="ignore").to_dict("records"))
    shifts = shifts_of(settings.orders)
    size = PassSize(settings.batch_size, row_tokens(settings.text_tokens, encoder, records))
    batches = size.passes([row["length"] for row in records])
    encode = EncodedPasses(encoder.for_model(model), size, shifts, can_share(model))
    loader = loader_of(records, batches, encode, settings.num_workers)
    probs = np.empty((len(shifts), len(records), len(LETTERS)))  # [orders, N, 4]

    # Of a batch's passes, [B, orders, 4]
    letters = letter_token_ids(encoder.processor)
    score = functools.partial(
        letter_probabilities, model, letters=letters, use_amp=settings.use_amp
    )
    scored = in_flight(model, score, loader)
    for done, (chosen, at_places) in enumerate(zip(batches, scored, strict=True), 1):
        stop_if_asked(SCORING)
        tell_by_hand(done, len(batches), "scored batch")
        probs[:, chosen] = _of_own_options(at_places, shifts)  # `chosen` has B row numbers

    index = pd.MultiIndex.from_product([shifts, rows["id"]], names=["order", "id"])
    of_orders = probs.reshape(-1, len(LETTERS))  # [orders * N, 4]
    return pd.DataFrame(of_orders, index, LETTERS).reset_index()


def _of_own_options(at_places: np.ndarray, shifts: Sequence[int]) -> np.ndarray:
    """Bring probabilities back from the places of each order to the rows' own options.

    Args:
        at_places: [B, orders, 4].
        shifts: by how many places each order turns the options.

    Returns:
        [orders, B, 4].
    """
    own = np.empty_like(at_places)
    for number, shift in enumerate(shifts):
        own[:, number, list(cyclic_order(shift))] = at_places[:, number]
    return own.swapaxes(0, 1)


@torch.inference_mode()
def letter_probabilities(
    model: torch.nn.Module, passes: Iterable[BatchFeature], letters: Sequence[int], use_amp: bool
) -> np.ndarray:
    """Compute the softmax over the letters' logits, in fp64: [B, orders, 4].

    Args:
        passes: all orders of the same rows, in one forward pass or in several.
        letters: the letters' token ids.
    """
    logits = [last_logits(model, batch, use_amp) for batch in passes]  # each [B, its orders, V]
    of_letters = torch.cat(logits, dim=1)[..., letters]  # [B, orders, 4]
    return of_letters.double().softmax(-1).cpu().numpy()


def last_logits(model: torch.nn.Module, batch: BatchFeature, use_amp: bool) -> torch.Tensor:
    """Run a forward pass; return the logits at the last place of each order, [B, orders, V]."""
    # Joined orders bring their own logits_to_keep, one column per order
    # A copy moves: the caller may hold the batches of several orders
    inputs = {"logits_to_keep": 1, **BatchFeature(dict(batch)).to(model.device)}
    if "segments" in inputs:
        inputs["attention_mask"] = tree_mask(inputs.pop("segments"))
    with autocast(model.device, use_amp):
        return model(**inputs).logits


def autocast(device: torch.device, use_amp: bool) -> contextlib.AbstractContextManager:
    """Autocast to fp16 on a GPU; do nothing on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.float16, enabled=use_amp)
    return contextlib.nullcontext()

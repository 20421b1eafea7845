"""Compute rows' option probabilities: a softmax over four letters' logits, last position.

A row may be scored in several cyclic orders of its options. Its probabilities are then the mean
over the orders; each option is followed to its place in an order.
"""

import contextlib
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from transformers import BatchFeature

from vqa_utils.artifacts.files import ArtifactError, ids_hash, read_json
from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.artifacts.probabilities import (
    BASE_TEST,
    SECOND_LOOK,
    write_orders,
    write_probabilities,
)
from vqa_utils.artifacts.stop import SCORING, stop_if_asked, tell_by_hand
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge, load_test
from vqa_utils.data.folds import held_out_rows
from vqa_utils.metrics import option_matrix
from vqa_utils.model.encoder import Encoder, letter_token_ids
from vqa_utils.model.lending.attach import check_lent_base
from vqa_utils.model.pass_size import PassSize, row_tokens
from vqa_utils.planning.batches import MOST_ORDERS, second_look_rows
from vqa_utils.prompts import LETTERS, cyclic_order
from vqa_utils.scoring._batches import EncodedPasses, loader_of
from vqa_utils.scoring._in_flight import in_flight
from vqa_utils.scoring._orders import can_share, shifts_of, tree_mask
from vqa_utils.setting_types import AUTO, CountOrAuto


def questions_of_fold(
    paths: RunPaths, config: Config, fold: int, predict: str = ""
) -> tuple[Path, dict[str, pd.DataFrame]]:
    """Select the rows that a fold's model scores, without their answers.

    These are `oof`, the held-out rows if there are any, and `test`.

    Args:
        predict: a folder with another test.csv, which is then the only set.

    Returns:
        The folder that the images are relative to, and the rows by set.

    Raises:
        ArtifactError: the fold has no adapter, or one that held out other rows than folds.csv says
            now.
    """
    if predict:
        test, _ = load_test(Path(predict), paths.predicting(predict).images)
        return Path(predict), {"test": test}
    challenge = load_challenge(config)
    held_out = challenge.train[held_out_rows(paths.folds, challenge.train, config, fold)]
    if not paths.fold(fold).meta.exists():
        raise ArtifactError(
            f"{paths.fold(fold).meta}: expected a trained adapter, found none; "
            "run notebook 03_train_fold first"
        )
    if read_json(paths.fold(fold).meta).get("held_out_ids") != ids_hash(held_out["id"]):
        raise ArtifactError(
            f"{paths.fold(fold).meta}: expected an adapter that held out the rows of fold {fold} in "
            "folds.csv, found one that held out others, and may have trained on these; "
            "run notebook 03_train_fold again"
        )
    oof = {"oof": held_out.drop(columns="answer")} if len(held_out) else {}
    return challenge.folder, oof | {"test": challenge.test}


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


def score_fold(
    model: PeftModel,
    encoder: Encoder,
    questions: dict[str, pd.DataFrame],
    config: Config,
    out: FoldPaths,
) -> dict[str, pd.DataFrame]:
    """Score each set of rows and write `probs_<set>.csv`.

    Several orders are also written one by one, to `probs_<set>_orders.csv`. With
    `config.baselines`, the held-out rows are scored twice more: `zero_shot` by the base without its
    adapter, and `blank` by the adapter with grey pictures. With `config.base_member` they are
    scored as `zero_shot`, and the first fold's notebook scores the test rows so too. With
    `config.second_look`, `<set>_second_look` has the least certain rows in all orders, with
    `second_look_side` in other pixels, with `second_look_crops` with crops.

    Args:
        out: of the fold's files.

    Returns:
        The probabilities by set: `id`, `a` to `d`.

    Raises:
        RunError: the lent base has changed.
    """
    settings = ScoringSettings.of_run(config)
    by_order = {}
    for name, rows in questions.items():
        by_order[name] = score_orders(model, encoder, rows, settings)

    probs = {name: averaged(orders) for name, orders in by_order.items()}
    if config.second_look:
        probs |= _second_look(model, encoder, questions, config, probs)
    of_the_base = _of_the_base(questions, config, out)
    if of_the_base:
        with model.disable_adapter():
            for name, rows in of_the_base.items():
                probs[name] = score_options(model, encoder, rows, settings)
    held_out = shown_grey(questions, config)
    if held_out is not None:
        probs["blank"] = score_options(model, encoder.blanked(), held_out, settings)
    check_lent_base()

    for name, frame in probs.items():
        write_probabilities(out.probs(name), frame)
    for name, orders in by_order.items():
        write_orders(out.orders(name), orders)
    return probs


def _second_look(
    model: PeftModel,
    encoder: Encoder,
    questions: dict[str, pd.DataFrame],
    config: Config,
    probs: dict[str, pd.DataFrame],
) -> dict[str, pd.DataFrame]:
    """Score the least certain rows of each set again, in all orders; the others as in `score_fold`.

    Args:
        probs: of the first look, by set.
    """
    closer = encoder.closer(config.look_side, config.look_crops)
    rows_a_pass = second_look_rows(config, encoder.most_image_tokens, closer.most_image_tokens)
    first = ScoringSettings.of_run(config)
    in_all_orders = replace(first, batch_size=rows_a_pass, orders=MOST_ORDERS)
    looks = {}
    for name, rows in questions.items():
        unsure = least_certain(rows, probs[name], config.second_look)
        looks[f"{name}_{SECOND_LOOK}"] = score_options(model, closer, unsure, in_all_orders)
    return looks


def least_certain(rows: pd.DataFrame, probs: pd.DataFrame, share: float) -> pd.DataFrame:
    """Select this share of rows, at least one: those whose chosen option is least probable.

    Args:
        rows: any columns.
        probs: `id`, `a` to `d`, in the order of `rows`.
        share: of the rows.

    Returns:
        In the order of `rows`.
    """
    confidence = option_matrix(probs).max(axis=1)  # [N]
    count = max(1, round(share * len(rows)))
    chosen = np.sort(np.argsort(confidence, kind="stable")[:count])
    return rows.iloc[chosen]


def _of_the_base(
    questions: dict[str, pd.DataFrame], config: Config, out: FoldPaths
) -> dict[str, pd.DataFrame]:
    """Select the rows that the base scores without an adapter, by the name of their file."""
    rows = {}
    if "oof" in questions and (config.baselines or config.base_member):
        rows["zero_shot"] = questions["oof"]
    if config.base_member and out.number == config.base_fold:
        rows[BASE_TEST] = questions["test"]
    return rows


def shown_grey(questions: dict[str, pd.DataFrame], config: Config) -> pd.DataFrame | None:
    """Select the rows of a fold whose pictures are shown grey too: with `baselines`, held-out ones."""
    return questions.get("oof") if config.baselines else None


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

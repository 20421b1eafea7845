"""Score the rows of one fold: held out and test, closer where it is unsure, by the base, and in grey."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from peft import PeftModel

from vqa_utils.artifacts.files import ArtifactError, ids_hash, read_json
from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.artifacts.probabilities import (
    BASE_TEST,
    SECOND_LOOK,
    read_probabilities,
    write_orders,
    write_probabilities,
)
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge, load_test
from vqa_utils.data.folds import held_out_rows
from vqa_utils.metrics import option_matrix
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.lending.attach import check_lent_base
from vqa_utils.planning.batches import MOST_ORDERS, second_look_rows
from vqa_utils.scoring.options import ScoringSettings, averaged, score_options, score_orders


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


def score_fold(
    model: PeftModel,
    encoder: Encoder,
    questions: dict[str, pd.DataFrame],
    config: Config,
    own: FoldPaths,
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
        model: the adapter's.
        encoder: of the run.
        questions: rows by set, without their answers.
        config: the settings of the run.
        own: the files of the adapter's fold.
        out: for the files that are written; `own`, unless another test set is answered.

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
        unsure = unsure_rows(questions, probs, config, own)
        probs |= _second_look(model, encoder, unsure, config)
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


def unsure_rows(
    questions: dict[str, pd.DataFrame],
    probs: dict[str, pd.DataFrame],
    config: Config,
    own: FoldPaths,
) -> dict[str, pd.DataFrame]:
    """Select the rows of each set for the second look.

    They are the least certain `second_look` of the fold's held-out rows, and of other sets those
    that are no more certain. A refit, which held out none, takes its share of each set.

    Args:
        questions: rows by set.
        probs: of the first look, by set.
        config: the settings of the run.
        own: the files of the adapter's fold.
    """
    held_out = probs.get("oof")
    if held_out is None and own.probs("oof").exists():
        held_out = read_probabilities(own.probs("oof"))
    unsure = {}
    for name, rows in questions.items():
        judged = probs[name] if held_out is None else held_out
        unsure[name] = least_certain(rows, probs[name], threshold_of(judged, config.second_look))
    return unsure


def threshold_of(probs: pd.DataFrame, share: float) -> float:
    """Return the confidence that this share of rows, at least one, does not exceed."""
    confidence = np.sort(option_matrix(probs).max(axis=1))  # [N], of the chosen options
    count = max(1, round(share * len(confidence)))
    return float(confidence[count - 1])


def least_certain(rows: pd.DataFrame, probs: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Select rows whose chosen option is no more probable than a threshold; at least one.

    Args:
        rows: any columns.
        probs: `id`, `a` to `d`, in the order of `rows`.
        threshold: a probability.
    """
    confidence = option_matrix(probs).max(axis=1)  # [N]
    return rows[confidence <= max(threshold, confidence.min())]


def _second_look(
    model: PeftModel, encoder: Encoder, unsure: dict[str, pd.DataFrame], config: Config
) -> dict[str, pd.DataFrame]:
    """Score rows again, in all orders; the others as in `score_fold`.

    Args:
        unsure: of `unsure_rows`.
    """
    closer = encoder.closer(config.look_side, config.look_crops)
    rows_a_pass = second_look_rows(config, encoder.most_image_tokens, closer.most_image_tokens)
    first = ScoringSettings.of_run(config)
    in_all_orders = replace(first, batch_size=rows_a_pass, orders=MOST_ORDERS)
    looks = {}
    for name, rows in unsure.items():
        looks[f"{name}_{SECOND_LOOK}"] = score_options(model, closer, rows, in_all_orders)
    return looks


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

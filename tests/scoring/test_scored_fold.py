"""What a fold scores beside its rows: the base, grey pictures, a second look."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from bases import base_with_lora
from workers import terminate_workers

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.artifacts.probabilities import (
    BASE_TEST,
    SECOND_LOOK,
    read_orders,
    read_probabilities,
    write_probabilities,
)
from vqa_utils.artifacts.stop import VARIABLE, StopRequested
from vqa_utils.metrics import option_matrix
from vqa_utils.model.encoder import Encoder
from vqa_utils.prompts import LETTERS, Prompt
from vqa_utils.scoring import options
from vqa_utils.scoring.fold import score_fold, unsure_rows
from vqa_utils.scoring.options import ScoringSettings, score_options


@pytest.fixture
def paths(tmp_path):
    return FoldPaths(tmp_path / "fold0")


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_writes_no_half_scores(
    config, encoder, challenge, tmp_path, paths, monkeypatch
):
    """Its worker processes are told to end too, after the first batch, and live on."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "stop"))
    settings = dataclasses.replace(config, score_batch=1, num_workers=2)
    probabilities = options.letter_probabilities
    passes = []

    def told(*args, **options):
        terminate_workers()
        passes.append(args)
        if len(passes) == asked_at:
            (tmp_path / "stop").write_text("15")
        return probabilities(*args, **options)

    monkeypatch.setattr(options, "letter_probabilities", told)
    model = base_with_lora(config).eval()
    questions = {"test": challenge.test.drop(columns="answer", errors="ignore")}
    asked_at = 2
    with pytest.raises(StopRequested):
        score_fold(model, encoder, questions, settings, paths, paths)
    assert len(passes) == 2 and not (tmp_path / "fold0").exists()
    (tmp_path / "stop").unlink()
    asked_at = None
    found = score_fold(model, encoder, questions, settings, paths, paths)
    assert len(found["test"]) == len(challenge.test) == len(passes) - 2


@pytest.mark.parametrize("orders", [1, 2])
@pytest.mark.slow
def test_baselines_are_the_base_alone_and_the_adapter_without_pictures(
    base, config, encoder, challenge, paths, orders
):
    config = dataclasses.replace(config, tta=orders)
    model = base_with_lora(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    rows = challenge.train.head(6).drop(columns="answer")
    settings = ScoringSettings(batch_size=32, orders=orders)
    found = score_fold(model.eval(), encoder, {"oof": rows}, config, paths, paths)
    probs = {name: option_matrix(frame) for name, frame in found.items()}
    alone = option_matrix(score_options(base, encoder, rows, settings))
    blank = option_matrix(score_options(model, encoder.blanked(), rows, settings))
    np.testing.assert_allclose(probs["zero_shot"], alone, atol=1e-6)
    np.testing.assert_allclose(probs["blank"], blank, atol=1e-6)
    assert np.abs(probs["oof"] - alone).max() > 0.05


@pytest.mark.parametrize(("side", "crops"), [(0, 0), (96, 0), (0, 2)])
def test_the_least_certain_rows_are_scored_again_in_all_orders(
    base, encoder, config, challenge, paths, side, crops
):
    looks = {"second_look": 0.3, "second_look_side": side, "second_look_crops": crops}
    config = dataclasses.replace(config, baselines=False, **looks, tta=1)
    rows = challenge.train.head(10).drop(columns="answer")
    probs = score_fold(base, encoder, {"oof": rows}, config, paths, paths)
    assert list(probs) == ["oof", f"oof_{SECOND_LOOK}"]
    again = probs[f"oof_{SECOND_LOOK}"]
    confidence = option_matrix(probs["oof"]).max(axis=1)
    least = probs["oof"]["id"][confidence <= np.sort(confidence)[2]]
    assert list(again["id"]) == list(least), "three of ten, in their order"
    settings = dataclasses.replace(ScoringSettings.of_run(config), orders=4)
    seen_at = side or config.image_side
    closer = Encoder(encoder.processor, challenge.folder, seen_at, Prompt(crops=crops))
    whole = score_options(base, closer, rows[rows["id"].isin(least)], settings)
    pd.testing.assert_frame_equal(again, whole, atol=1e-5)
    read = read_probabilities(paths.probs(f"oof_{SECOND_LOOK}"))
    np.testing.assert_allclose(option_matrix(read), option_matrix(again), atol=1e-6)


def probs_of(rows, confidences):
    """Probabilities whose chosen option is as probable as this."""
    chosen = np.array(confidences)
    others = (1 - chosen) / 3
    columns = {"id": rows["id"], "a": chosen, "b": others, "c": others, "d": others}
    return pd.DataFrame(columns)


def test_what_is_unsure_is_judged_by_the_held_out_rows(config, challenge, paths):
    """Of other rows, many or few are no more certain than the least certain of these."""
    config = dataclasses.replace(config, second_look=0.4, tta=1)
    held_out, test = challenge.train.head(5), challenge.test.head(4)
    oof = probs_of(held_out, [0.9, 0.5, 0.8, 0.6, 0.7])

    def unsure(test_confidences, *, with_held_out):
        questions, probs = {"test": test}, {"test": probs_of(test, test_confidences)}
        if with_held_out:
            questions["oof"], probs["oof"] = held_out, oof
        found = unsure_rows(questions, probs, config, paths)
        return {name: list(rows["id"]) for name, rows in found.items()}

    ids = list(test["id"])
    refit = unsure([0.9, 0.8, 0.7, 0.95], with_held_out=False)
    assert refit == {"test": ids[1:3]}, "its share: no held-out row judges it"
    found = unsure([0.9, 0.55, 0.6, 0.61], with_held_out=True)
    assert found == {"oof": list(held_out["id"][[1, 3]]), "test": ids[1:3]}
    write_probabilities(paths.probs("oof"), oof)  # as before another test set is answered
    assert unsure([0.9, 0.55, 0.6, 0.61], with_held_out=False) == {"test": ids[1:3]}
    assert unsure([0.4, 0.5, 0.3, 0.6], with_held_out=False) == {"test": ids}
    assert unsure([0.9, 0.8, 0.99, 0.9], with_held_out=False) == {"test": ids[1:2]}, "one at least"


def test_the_base_answers_the_test_rows_in_one_fold_alone(encoder, config, challenge, tmp_path):
    config = dataclasses.replace(config, baselines=False, base_member=True)
    questions = {"oof": challenge.train.head(2), "test": challenge.test.head(2)}
    model = base_with_lora(config).eval()
    first, second = (FoldPaths(tmp_path / f"fold{number}") for number in (0, 1))
    probs = score_fold(model, encoder, questions, config, first, first)
    assert (
        list(probs) == ["oof", "test", "zero_shot", BASE_TEST] and first.probs(BASE_TEST).exists()
    )
    with model.disable_adapter():
        alone = score_options(model, encoder, questions["test"], ScoringSettings.of_run(config))
    pd.testing.assert_frame_equal(probs[BASE_TEST], alone)
    assert list(score_fold(model, encoder, questions, config, second, second)) == [
        "oof",
        "test",
        "zero_shot",
    ]
    predicted = {"test": questions["test"]}
    assert list(score_fold(model, encoder, predicted, config, first, first)) == ["test", BASE_TEST]


@pytest.mark.slow
def test_the_mean_stands_beside_the_orders_and_nothing_stale_does(
    base, config, encoder, challenge, tmp_path
):
    model = base_with_lora(config).eval()
    rows = challenge.train.head(5).drop(columns="answer")
    questions = {"oof": rows, "test": challenge.test}
    out = FoldPaths(tmp_path)
    score_fold(model, encoder, questions, dataclasses.replace(config, tta=4), out, out)
    for name, of_set in questions.items():
        assert out.scored(name) == [out.probs(name), out.orders(name)]
        by_order = read_orders(out.orders(name), of_set["id"])
        assert len(by_order) == 4 * len(of_set)
        mean = by_order.groupby("id")[list(LETTERS)].mean().loc[of_set["id"]]
        written = read_probabilities(out.probs(name), of_set["id"])
        np.testing.assert_allclose(option_matrix(written), mean, atol=1e-12)

    of_sets = {f"probs_{name}.csv" for name in ("oof", "test", "zero_shot", "blank")}
    of_orders = {"probs_oof_orders.csv", "probs_test_orders.csv"}
    assert {path.name for path in tmp_path.iterdir()} == of_sets | of_orders
    score_fold(model, encoder, questions, config, out, out)  # one order
    assert {path.name for path in tmp_path.iterdir()} == of_sets

import dataclasses
import gc

import numpy as np
import pandas as pd
import pytest
import torch
from bases import base_with_lora

from vqa_utils.data.pictures.files import PictureError
from vqa_utils.metrics import option_matrix
from vqa_utils.model.encoder import letter_token_ids
from vqa_utils.model.nf4 import forward as experts
from vqa_utils.planning import activations, batches
from vqa_utils.planning.shapes import shape_of
from vqa_utils.prompts import LETTERS, chat
from vqa_utils.scoring._orders import encode_orders, shifts_of
from vqa_utils.scoring.options import ScoringSettings, last_logits, score_options
from vqa_utils.setting_types import ConfigError

BY_THREE = ScoringSettings(batch_size=3)


@pytest.fixture(scope="module")
def uneven(challenge):
    """Rows with questions of three lengths."""
    more = [" 자세히 보세요." * (number % 3) for number in range(len(challenge.train))]
    return challenge.train.assign(question=challenge.train["question"] + more)


@pytest.fixture
def masks(encoder, monkeypatch):
    """The attention masks of the batches that the encoder makes."""
    masks = []
    questions = encoder.questions

    def watched(rows):
        batch = questions(rows)
        masks.append(batch["attention_mask"])
        return batch

    monkeypatch.setattr(encoder, "questions", watched)
    return masks


@pytest.mark.slow
def test_probabilities_do_not_depend_on_the_batch(base, encoder, uneven):
    one_a_pass = ScoringSettings(batch_size=1)
    one = score_options(base, encoder, uneven, one_a_pass)
    many = score_options(base, encoder, uneven, ScoringSettings(batch_size=7))
    assert list(one["id"]) == list(many["id"]) == list(uneven["id"])
    np.testing.assert_allclose(option_matrix(one), option_matrix(many), atol=1e-4)
    np.testing.assert_allclose(option_matrix(one).sum(axis=1), 1)
    for number in (0, 1, 2, len(uneven) - 1):  # each length, and the end
        alone = score_options(base, encoder, uneven.iloc[[number]], one_a_pass)
        expected = option_matrix(many)[[number]]
        np.testing.assert_allclose(option_matrix(alone), expected, atol=1e-4)


def test_rows_of_like_length_are_scored_together(base, encoder, uneven, masks):
    score_options(base, encoder, uneven, ScoringSettings(batch_size=4))
    sorted_lengths = sorted((int(row.sum()) for mask in masks for row in mask), reverse=True)
    in_batches = [sorted_lengths[start : start + 4] for start in range(0, len(uneven), 4)]
    assert [sorted(mask.sum(1).tolist(), reverse=True) for mask in masks] == in_batches
    assert [mask.shape[1] for mask in masks] == [max(lengths) for lengths in in_batches]


def test_probabilities_are_the_softmax_of_the_four_letters_logits(
    base, encoder, challenge, processor
):
    row = challenge.test.iloc[0]
    image = encoder.questions([row.to_dict()])
    text = processor.apply_chat_template(chat(row), tokenize=False, add_generation_prompt=True)
    with_image = text.replace("<|image_pad|>", "<|image_pad|>" * 16)
    ids = processor.tokenizer(with_image, return_tensors="pt")
    with torch.no_grad():
        logits = base(**{**image, **ids}).logits[0, -1]  # [V]
    letters = processor.tokenizer.convert_tokens_to_ids(list(LETTERS))
    expected = logits[letters].double().softmax(-1).numpy()
    found = score_options(base, encoder, challenge.test.head(1), BY_THREE)
    np.testing.assert_allclose(option_matrix(found)[0], expected, atol=1e-6)


def test_worker_processes_change_nothing(base, encoder, challenge):
    here = score_options(base, encoder, challenge.test, BY_THREE)
    two_workers = dataclasses.replace(BY_THREE, num_workers=2)
    workers = score_options(base, encoder, challenge.test, two_workers)
    pd.testing.assert_frame_equal(here, workers)


@pytest.mark.slow
@pytest.mark.parametrize("orders", [1, 4])
def test_an_outlier_is_scored_in_passes_of_its_own(base, encoder, challenge, masks, orders):
    rows = challenge.train.head(6).reset_index(drop=True)
    rows.loc[2, "question"] += " 자세히 보세요." * 60
    settings = ScoringSettings(batch_size=6, text_tokens=10**5, orders=orders)
    together = score_options(base, encoder, rows, settings)
    masks.clear()
    apart = score_options(base, encoder, rows, dataclasses.replace(settings, text_tokens="auto"))
    assert [len(mask) for mask in masks] == [1] * orders + [5]  # its orders share no pass either
    np.testing.assert_allclose(option_matrix(apart), option_matrix(together), atol=1e-4)


def test_a_batch_that_was_scored_is_where_it_was(base, encoder, challenge):
    """Of an outlier's orders, one alone is on the GPU."""
    batch = encoder.questions(challenge.test.head(2).to_dict("records"))
    before = batch.data
    with torch.inference_mode():
        last_logits(base, batch, True)
    assert batch.data is before, "`BatchFeature.to` puts others in its place"


def test_answers_are_not_looked_at(base, encoder, challenge):
    rows = challenge.train.head(6)
    with_answers = score_options(base, encoder, rows, BY_THREE)
    without = score_options(base, encoder, rows.drop(columns="answer"), BY_THREE)
    wrong = score_options(base, encoder, rows.assign(answer="a"), BY_THREE)
    pd.testing.assert_frame_equal(with_answers, without)
    pd.testing.assert_frame_equal(with_answers, wrong)


def test_a_batch_that_is_not_resolved_is_refused(config):
    with pytest.raises(ConfigError, match="score_batch"):
        ScoringSettings.of_run(dataclasses.replace(config, score_batch="auto"))


@pytest.mark.parametrize("orders", [1, 4])
def test_orders_give_the_mean_of_their_softmaxes_to_the_last_bit(base, encoder, challenge, orders):
    rows = challenge.test.head(3)
    records = rows.to_dict("records")
    shifts = shifts_of(orders)
    batch = encoder.questions(records)
    if orders > 1:
        batch = encode_orders(encoder, records, shifts)
    letters = letter_token_ids(encoder.processor)
    with torch.inference_mode():
        logits = last_logits(base, batch, True)  # [B, orders, V]
    probs = logits[..., letters].double().softmax(-1)  # [B, orders, 4]
    by_option = [probs[:, order].roll(shift, -1) for order, shift in enumerate(shifts)]
    expected = torch.stack(by_option).mean(0)  # [B, 4]
    found = score_options(base, encoder, rows, ScoringSettings(batch_size=3, orders=orders))
    np.testing.assert_array_equal(option_matrix(found), expected.numpy())


def test_the_picture_matters(base, encoder, challenge):
    settings = ScoringSettings(batch_size=8)
    seen = option_matrix(score_options(base, encoder, challenge.train, settings))
    blank = option_matrix(score_options(base, encoder.blanked(), challenge.train, settings))
    assert np.abs(seen - blank).max() > 0.1


def test_an_image_that_is_gone_stops_the_scoring(base, encoder, challenge):
    rows = challenge.test.head(2).assign(path="nothing.png")
    with pytest.raises(PictureError, match=r"nothing\.png"):
        score_options(base, encoder, rows, BY_THREE)


def held(known=()):
    """Bytes by storage of the tensors that Python holds, but for those `known`."""
    gc.collect()
    storages = [
        thing.untyped_storage()
        for thing in gc.get_objects()
        if issubclass(type(thing), torch.Tensor)
    ]
    return {
        storage.data_ptr(): storage.nbytes()
        for storage in storages
        if storage.data_ptr() not in known
    }


@pytest.mark.slow
def test_scoring_holds_what_the_plan_counts(config, encoder, challenge, monkeypatch):
    """Tensor by tensor, in fp16, while the experts of the layer behind the DeepStack's are at work."""
    model, rows = (
        base_with_lora(config, torch.float16).eval(),
        challenge.train.to_dict("records"),
    )
    found, gate, shape = [], experts.gate, shape_of(config)

    def forward():
        batch = encoder.questions(rows)
        with torch.inference_mode(), torch.autocast("cpu", torch.float16):
            model(**batch, logits_to_keep=1)
        return batch

    def counted(hidden, *args):
        h = gate(hidden, *args)
        found.append((sum(held(before).values()), len(hidden)))
        return h

    forward()  # which makes LoRA's copies, part of the weights
    before = held()
    monkeypatch.setattr(experts, "gate", counted)
    batch = forward()
    image_tokens = int(batch["mm_token_type_ids"].sum()) // len(rows)
    size = batches.Batch(len(rows), image_tokens, batch["input_ids"].shape[1] - image_tokens)
    most, slots = max(found)
    slots_per_token = slots / size.tokens / shape.experts_per_token
    monkeypatch.setattr(activations, "SLOTS_PER_ROUTED_TOKEN", slots_per_token)
    not_yet = (
        4 * shape.hidden + 3 * batch["input_ids"].shape[1]
    ) * size.tokens  # the layer's output; there is no mask
    assert len(found) == 4 and most == pytest.approx(
        activations.scoring_bytes(shape, config, size, first=True) - not_yet, rel=0.05
    )

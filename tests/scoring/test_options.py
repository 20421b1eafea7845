import dataclasses
import gc

import numpy as np
import pandas as pd
import pytest
import torch

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.artifacts.probabilities import read_orders, read_probabilities
from vqa_utils.model.loading import add_lora, load_base
from vqa_utils.model.nf4 import forward as experts
from vqa_utils.planning import activations
from vqa_utils.planning.shapes import shape_of
from vqa_utils.prompts import LETTERS, chat
from vqa_utils.scoring._orders import encode_orders, shifts_of
from vqa_utils.scoring.options import last_logits, score_fold, score_options


def test_probabilities_do_not_depend_on_the_batch(base, encoder, challenge):
    rows = challenge.train.assign(
        question=[
            q + " 자세히 보세요." * (i % 3) for i, q in enumerate(challenge.train["question"])
        ]
    )
    one, many = (score_options(base, encoder, rows, batch_size=size) for size in (1, 7))
    assert list(one["id"]) == list(many["id"]) == list(rows["id"])
    alone = pd.concat(
        [score_options(base, encoder, rows.iloc[[i]], batch_size=1) for i in range(len(rows))]
    )
    np.testing.assert_allclose(one[list(LETTERS)], many[list(LETTERS)], atol=1e-4)
    np.testing.assert_allclose(alone[list(LETTERS)], many[list(LETTERS)], atol=1e-4)
    assert np.allclose(one[list(LETTERS)].sum(axis=1), 1)


def test_rows_of_like_length_are_scored_together(base, encoder, challenge, monkeypatch):
    rows = challenge.train.assign(
        question=[
            q + " 자세히 보세요." * (i % 3) for i, q in enumerate(challenge.train["question"])
        ]
    )
    masks, questions = [], encoder.questions
    monkeypatch.setattr(
        encoder,
        "questions",
        lambda *a, **k: masks.append((b := questions(*a, **k))["attention_mask"]) or b,
    )
    score_options(base, encoder, rows, batch_size=4)
    assert sum(int((mask == 0).sum()) for mask in masks) == 30
    assert [mask.shape[1] for mask in masks] == sorted(
        (mask.shape[1] for mask in masks), reverse=True
    )


def test_probabilities_are_the_softmax_of_the_four_letters_logits(
    base, encoder, challenge, processor
):
    row = challenge.test.iloc[0]
    image = encoder.questions([row.to_dict()])
    text = processor.apply_chat_template(
        chat(row, None), tokenize=False, add_generation_prompt=True
    )
    ids = processor.tokenizer(
        text.replace("<|image_pad|>", "<|image_pad|>" * 16), return_tensors="pt"
    )
    with torch.no_grad():
        logits = base(**{**image, **ids}).logits[0, -1]
    expected = logits[processor.tokenizer.convert_tokens_to_ids(list(LETTERS))].double().softmax(-1)
    found = score_options(base, encoder, challenge.test.head(1), batch_size=4)[
        list(LETTERS)
    ].to_numpy()[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_worker_processes_change_nothing(base, encoder, challenge):
    here, workers = (
        score_options(base, encoder, challenge.test, batch_size=3, num_workers=n) for n in (0, 2)
    )
    pd.testing.assert_frame_equal(here, workers)


def test_answers_are_not_looked_at(base, encoder, challenge):
    rows = challenge.train.head(6)
    with_answers, without, wrong = (
        score_options(base, encoder, r, batch_size=3)
        for r in (rows, rows.drop(columns="answer"), rows.assign(answer="a"))
    )
    pd.testing.assert_frame_equal(with_answers, without)
    pd.testing.assert_frame_equal(with_answers, wrong)


def test_baselines_are_the_base_alone_and_the_adapter_without_pictures(
    base, config, encoder, challenge, tmp_path
):
    model = add_lora(load_base(config), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    rows = challenge.train.head(6).drop(columns="answer")
    probs = score_fold(model.eval(), encoder, {"oof": rows}, config, FoldPaths(tmp_path))
    alone = score_options(base, encoder, rows, batch_size=32)[list(LETTERS)]
    blank = score_options(model, encoder.blanked(), rows, batch_size=32)[list(LETTERS)]
    np.testing.assert_allclose(probs["zero_shot"][list(LETTERS)], alone, atol=1e-6)
    np.testing.assert_allclose(probs["blank"][list(LETTERS)], blank, atol=1e-6)
    assert abs(probs["oof"][list(LETTERS)] - alone).to_numpy().max() > 0.05
    assert {path.name for path in tmp_path.iterdir()} == {
        f"probs_{name}.csv" for name in ("oof", "zero_shot", "blank")
    }
    two_orders = dataclasses.replace(config, tta=2)
    probs = score_fold(model, encoder, {"oof": rows}, two_orders, FoldPaths(tmp_path / "orders"))
    alone = score_options(base, encoder, rows, batch_size=32, orders=2)[list(LETTERS)]
    blank = score_options(model, encoder.blanked(), rows, batch_size=32, orders=2)[list(LETTERS)]
    np.testing.assert_allclose(probs["zero_shot"][list(LETTERS)], alone, atol=1e-6)
    np.testing.assert_allclose(probs["blank"][list(LETTERS)], blank, atol=1e-6)


@pytest.mark.parametrize("orders", [1, 4])
def test_orders_give_the_mean_of_their_softmaxes_to_the_last_bit(base, encoder, challenge, orders):
    rows, records = challenge.test.head(3), challenge.test.head(3).to_dict("records")
    batch = (
        encode_orders(encoder, records, shifts_of(orders))
        if orders > 1
        else encoder.questions(records)
    )
    letters = encoder.processor.tokenizer.convert_tokens_to_ids(list(LETTERS))
    with torch.inference_mode():
        probs = last_logits(base, batch, True)[..., letters].double().softmax(-1)
    expected = torch.stack(
        [probs[:, number].roll(shift, -1) for number, shift in enumerate(shifts_of(orders))]
    ).mean(0)
    found = score_options(base, encoder, rows, batch_size=3, orders=orders)
    np.testing.assert_array_equal(found[list(LETTERS)].to_numpy(), expected.numpy())


def test_the_mean_stands_beside_what_each_order_said_and_nothing_stale_does(
    base, config, encoder, challenge, tmp_path
):
    model, rows = (
        add_lora(load_base(config), config).eval(),
        challenge.train.head(5).drop(columns="answer"),
    )
    out = FoldPaths(tmp_path)
    score_fold(
        model,
        encoder,
        {"oof": rows, "test": challenge.test},
        dataclasses.replace(config, tta=4),
        out,
    )
    for name, of_set in (("oof", rows), ("test", challenge.test)):
        by_order = read_orders(out.orders(name), of_set["id"])
        assert len(by_order) == 4 * len(of_set) and out.scored(name) == [
            out.probs(name),
            out.orders(name),
        ]
        mean = by_order.groupby("id")[list(LETTERS)].mean().loc[of_set["id"]]
        np.testing.assert_allclose(
            read_probabilities(out.probs(name), of_set["id"])[list(LETTERS)], mean, atol=1e-12
        )
    names = ("oof", "test", "zero_shot", "blank")
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {f"probs_{name}.csv" for name in (*names, "oof_orders", "test_orders")}
    score_fold(model, encoder, {"oof": rows, "test": challenge.test}, config, out)
    assert {path.name for path in tmp_path.iterdir()} == {f"probs_{name}.csv" for name in names}


def test_the_picture_matters(base, encoder, challenge):
    seen, blank = (
        score_options(base, e, challenge.train, batch_size=8) for e in (encoder, encoder.blanked())
    )
    assert (seen[list(LETTERS)] - blank[list(LETTERS)]).abs().to_numpy().max() > 0.1


def test_an_image_that_is_gone_stops_the_scoring(base, encoder, challenge):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        score_options(
            base, encoder, challenge.test.head(2).assign(path="nothing.png"), batch_size=2
        )


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


def test_scoring_holds_what_the_plan_counts(config, encoder, challenge, monkeypatch):
    """Tensor by tensor, in fp16, while the experts of the layer behind the DeepStack's are at work."""
    model, rows = (
        add_lora(load_base(config, torch.float16), config).eval(),
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
    size = activations.Batch(len(rows), image_tokens, batch["input_ids"].shape[1] - image_tokens)
    most, slots = max(found)
    slots_per_token = slots / size.tokens / shape.experts_per_token
    monkeypatch.setattr(activations, "SLOTS_PER_ROUTED_TOKEN", slots_per_token)
    not_yet = (
        4 * shape.hidden + 3 * batch["input_ids"].shape[1]
    ) * size.tokens  # the layer's output; there is no mask
    assert len(found) == 4 and most == pytest.approx(
        activations.scoring_bytes(shape, size, first=True) - not_yet, rel=0.05
    )

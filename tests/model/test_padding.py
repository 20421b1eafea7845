"""Rows that are padded on the left go through the language model with their padding on the right, and come back."""

import types

import pandas as pd
import pytest
import torch
from bases import base_of, base_with_lora

from vqa_utils.training._loss import answer_loss


@pytest.fixture
def uneven(encoder, challenge):
    """A batch of rows of three lengths."""
    rows = challenge.train.head(3).to_dict("records")
    rows[0]["question"], rows[2]["question"] = rows[0]["question"] * 3, rows[2]["question"][:4]
    batch = encoder.examples(rows)
    assert batch["attention_mask"].sum(1).diff().abs().min() > 0
    return batch


def as_transformers_has_it(model):
    language_model = next(
        module for name, module in model.named_modules() if name.endswith("language_model")
    )
    language_model.forward = types.MethodType(type(language_model).forward, language_model)
    return language_model


def seen_by_layers(model):
    """What each decoder layer is given as its mask, filled as the model computes."""
    masks = []
    for layer in model.get_decoder().layers:
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
    return masks


def test_no_layer_gets_a_mask_and_the_logits_are_the_same(config, uneven):
    model, inputs = (
        base_of(config),
        {name: value for name, value in uneven.items() if name != "labels"},
    )
    masks = seen_by_layers(model)
    with torch.no_grad():
        found = model(**inputs).logits
        assert masks == [None] * len(model.get_decoder().layers)
        as_transformers_has_it(model)
        torch.testing.assert_close(found, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert masks[-1].shape[-2:] == uneven["input_ids"].shape[1:] * 2


def test_the_gradients_are_the_same(config, uneven):
    def gradients(model):
        inputs = dict(uneven)
        labels = inputs.pop("labels")
        answer_loss(model.eval()(**inputs), labels).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    model = base_with_lora(config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # new ones are zero, and A's gradients with them
            torch.nn.init.normal_(
                parameter, std=0.02, generator=torch.Generator().manual_seed(len(name))
            )
    found = gradients(model)
    model.zero_grad()
    as_transformers_has_it(model)
    wanted = gradients(model)
    assert all(grad.abs().max() > 0 for grad in wanted)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_every_position_comes_back_to_its_place(config, uneven):
    model = base_of(config)
    inputs = {
        name: value for name, value in uneven.items() if name not in ("labels", "logits_to_keep")
    }
    with torch.no_grad():
        found = model.model(**inputs).last_hidden_state
        as_transformers_has_it(model)
        wanted = model.model(**inputs).last_hidden_state
    real = uneven["attention_mask"].bool()
    torch.testing.assert_close(found[real], wanted[real], atol=1e-4, rtol=1e-4)


def test_with_a_cache_nothing_is_moved(config, uneven):
    model, inputs = (
        base_of(config),
        {name: value for name, value in uneven.items() if name != "labels"},
    )
    last = {"input_ids": inputs["input_ids"][:, -1:], "attention_mask": inputs["attention_mask"]}

    @torch.no_grad()
    def two_steps():
        first = model(**inputs, use_cache=True)
        cache = next(
            name for name in ("cache", "past_key_values") if getattr(first, name, None) is not None
        )
        return first.logits, model(**last, **{cache: getattr(first, cache)}).logits

    found = two_steps()
    as_transformers_has_it(model)
    torch.testing.assert_close(found, two_steps(), atol=1e-4, rtol=1e-4)


def test_nothing_is_moved_if_all_layers_outputs_are_asked_for(config, uneven):
    model, inputs = (
        base_of(config),
        {name: value for name, value in uneven.items() if name != "labels"},
    )
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True).hidden_states
        as_transformers_has_it(model)
        wanted = model(**inputs, output_hidden_states=True).hidden_states
    real = uneven["attention_mask"].bool()
    torch.testing.assert_close(
        [part[real] for part in found], [part[real] for part in wanted], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("side", ["right", "none"])
def test_rows_that_need_no_moving_stay(config, encoder, challenge, processor, side):
    rows = challenge.train.head(2).to_dict("records")
    rows[1]["question"] = rows[0]["question"] + ("?" * 9 if side == "right" else "")
    texts = pd.DataFrame(rows)["question"].tolist()
    ids = processor.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    assert (ids["attention_mask"][:, -1].min() == 0) == (side == "right")
    model = base_of(config)
    with torch.no_grad():
        found = model(**ids).logits
        as_transformers_has_it(model)
        wanted = model(**ids).logits
    real = ids["attention_mask"].bool()
    torch.testing.assert_close(found[real], wanted[real], atol=1e-4, rtol=1e-4)

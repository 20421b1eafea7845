"""The same loader, encoder, trainer and scorer on small models of the other families that the presets name."""

import dataclasses
import types

import numpy as np
import pandas as pd
import pytest
import torch
from bases import base_of, base_with_lora, lora_on
from families import FAMILIES
from stock import dense_weights
from transformers import AutoModelForImageTextToText

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.artifacts.places import portable
from vqa_utils.metrics import accuracy, log_loss
from vqa_utils.model import hand_over
from vqa_utils.model.adapter import load_adapter
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.features.encoding import pictures_of
from vqa_utils.model.loading import load_base, load_processor
from vqa_utils.model.nf4.experts import PROJECTIONS, NF4Experts
from vqa_utils.planning.shapes import LAYERS
from vqa_utils.prompts import LETTERS, USUAL, Prompt, chat, cyclic_order, reorder_options
from vqa_utils.scoring._orders import can_share
from vqa_utils.scoring.options import ScoringSettings, score_options
from vqa_utils.training.fold import train_fold

pytestmark = pytest.mark.slow


@pytest.fixture(params=FAMILIES, ids=lambda family: family.__name__)
def family(request, tmp_path, processor, config):
    """Settings whose model is a new small one of the family, saved as a hub's folder would be."""
    model, its_processor = request.param(processor.tokenizer)
    model.save_pretrained(tmp_path / "base")
    its_processor.save_pretrained(tmp_path / "base")
    return dataclasses.replace(config, model=portable(str(tmp_path / "base")), image_side=112)


def test_train_keep_load_and_score(family, challenge, tmp_path):
    encoder = Encoder(load_processor(family), challenge.folder, family.image_side)
    paths = FoldPaths(tmp_path / "fold0")
    meta = train_fold(
        base_with_lora(family),
        family,
        encoder,
        challenge.train.head(8),
        challenge.train.tail(4),
        paths,
    )
    assert meta["steps"] == 2 and pd.read_csv(paths.train_log)["grad_norm"].gt(0).all()
    model, processor, config = load_adapter(paths.adapter, family)
    assert config == family
    held_out = challenge.train.tail(4)
    probs = score_options(
        model,
        Encoder(processor, challenge.folder, family.image_side),
        held_out,
        ScoringSettings(batch_size=4),
    )
    last = meta["epochs"][-1]
    assert log_loss(probs, held_out["answer"]) == pytest.approx(last["log_loss"], abs=1e-4)
    assert accuracy(probs, held_out["answer"]) == last["accuracy"]


def test_four_option_orders_equal_four_full_passes(family, challenge):
    base, encoder = (
        base_of(family),
        Encoder(load_processor(family), challenge.folder, family.image_side),
    )
    rows = challenge.test.head(3)
    assert can_share(base) == ("linear_attention" not in str(base.config.get_text_config()))
    one_order, four_orders = ScoringSettings(batch_size=3), ScoringSettings(batch_size=3, orders=4)
    found = score_options(base, encoder, rows, four_orders)[list(LETTERS)].to_numpy()
    full = np.zeros_like(found)
    for shift in range(4):
        turned_rows = pd.DataFrame(
            [reorder_options(row, cyclic_order(shift)) for row in rows.to_dict("records")]
        )
        full += (
            np.roll(
                score_options(base, encoder, turned_rows, one_order)[list(LETTERS)].to_numpy(),
                shift,
                axis=1,
            )
            / 4
        )
    np.testing.assert_allclose(found, full, atol=1e-4)


def test_two_batches_in_flight_answer_as_one_after_the_other(family, challenge, monkeypatch):
    """Each family's language model calls its layers in its own way, and the cut is before one."""
    monkeypatch.setattr(hand_over, "TURNS", None)
    encoder = Encoder(load_processor(family), challenge.folder, family.image_side)
    tuned = base_with_lora(family).eval()
    settings = ScoringSettings(batch_size=2)
    wanted = score_options(tuned, encoder, challenge.test, settings)
    cut = [types.SimpleNamespace(layers=[f"{LAYERS}.{number}"]) for number in (0, 1)]
    plan = types.SimpleNamespace(gpus=cut, gives_back=False, batches_in_flight=2)
    hand_over.use_turns(tuned, plan, with_folds=False)
    moves = []
    move_to = hand_over.GpuTurns.move_to
    monkeypatch.setattr(
        hand_over.GpuTurns, "move_to", lambda turns, gpu: (moves.append(gpu), move_to(turns, gpu))
    )
    found = score_options(tuned, encoder, challenge.test, settings)
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    assert moves.count(0) == moves.count(1) == -(-len(challenge.test) // 2)


def test_layers_of_the_vision_tower_get_no_lora_even_where_the_name_matches(family):
    targets = ("gate_proj", "q_proj")
    base = base_of(family)
    matching = [
        name for name, _ in base.named_modules() if "visual" in name and name.endswith(targets)
    ]
    wanted = [
        name
        for name, _ in base.named_modules()
        if "language_model" in name and name.endswith(targets)
    ]
    model = lora_on(base, dataclasses.replace(family, target_modules=targets))
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(learning) == 2 * len(wanted) >= 8 and all(
        "language_model" in name for name in learning
    )
    assert bool(matching) == ("Qwen2_5" in type(base).__name__)


def test_fp16_answers_as_fp32_does(family, challenge):
    batch = Encoder(load_processor(family), challenge.folder, family.image_side).questions(
        challenge.test.to_dict("records")
    )
    exact = base_of(family, torch.float32)(**batch, logits_to_keep=1).logits.squeeze(1)
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        found = base_of(family, torch.float16)(**batch, logits_to_keep=1).logits.squeeze(1).float()
    assert torch.nn.functional.cosine_similarity(found, exact).min() > 0.999


def test_padding_on_the_right_changes_no_answer(family, challenge):
    rows = challenge.test.head(3).to_dict("records")
    rows[0]["question"], rows[2]["question"] = rows[0]["question"] * 3, rows[2]["question"][:4]
    batch = Encoder(load_processor(family), challenge.folder, family.image_side).questions(rows)
    assert (batch["attention_mask"] == 0).any()
    base = base_of(family)
    found = base(**batch, logits_to_keep=1).logits
    language_model = base.model.language_model
    language_model.forward = types.MethodType(type(language_model).forward, language_model)
    torch.testing.assert_close(found, base(**batch, logits_to_keep=1).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("uneven", [True, False])
def test_attention_takes_the_form_that_a_t4_has_a_fast_kernel_for(
    family, challenge, monkeypatch, uneven
):
    """Causal without a mask, and as many heads of k and v as of q: else torch writes all scores out in fp32 there."""
    calls, sdpa = [], torch.nn.functional.scaled_dot_product_attention
    (row,) = challenge.test.head(1).to_dict("records")
    rows = [row, {**row, "question": row["question"] + "?" * 9 * uneven}]
    batch = Encoder(load_processor(family), challenge.folder, family.image_side).questions(rows)
    assert (batch["attention_mask"] == 0).any() == uneven
    base = base_of(family)

    def seen(q, k, v, *args, **kwargs):
        calls.append((q.shape[1], k.shape[1], v.shape[1], *args, kwargs))
        return sdpa(q, k, v, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    base(**batch, logits_to_keep=1)
    *_, (q, k, v, kwargs) = calls  # the last is the language model's
    assert (
        q == k == v == 4
        and kwargs["is_causal"]
        and kwargs["attn_mask"] is None
        and not kwargs.get("enable_gqa")
    )


@pytest.mark.parametrize("prompt", [USUAL, Prompt(crops=2)], ids=["whole", "crops"])
def test_the_positions_are_those_of_the_model(family, challenge, prompt):
    encoder = Encoder(load_processor(family), challenge.folder, family.image_side, prompt)
    batch = encoder.examples(challenge.train.to_dict("records"))
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    wanted, _ = base_of(family).model.get_rope_index(**{name: batch[name] for name in names})
    assert torch.equal(batch["position_ids"], wanted)


@pytest.mark.parametrize("prompt", [USUAL, Prompt(crops=2)], ids=["whole", "crops"])
def test_a_batch_is_what_the_familys_own_processor_makes(family, challenge, prompt):
    processor = load_processor(family)
    encoder = Encoder(processor, challenge.folder, family.image_side, prompt)
    rows = challenge.test.head(3).to_dict("records")
    chats = [chat(row, prompt=prompt) for row in rows]
    texts = processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    images = [image for row in rows for image in encoder._images(row["path"])]
    wanted = processor(
        text=texts, images=images, do_resize=False, padding=True, padding_side="left", return_tensors="pt"
    )  # fmt: skip
    found = encoder.questions(rows)
    assert set(found) == {*wanted, "position_ids"}
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_features_of_a_store_answer_as_the_tower_does(family, challenge, tmp_path):
    cached = dataclasses.replace(family, cache_features=True, cache_dir=str(tmp_path / "kept"))
    encoder = Encoder(load_processor(family), challenge.folder, family.image_side)
    wanted = base_of(family)(**encoder.questions(challenge.test.to_dict("records")))
    found = load_base(cached, None, pictures_of(challenge.folder, [challenge.test]))
    batch = encoder.for_model(found).questions(challenge.test.to_dict("records"))
    torch.testing.assert_close(found(**batch).logits, wanted.logits, rtol=0, atol=1e-5)
    assert not any("visual" in name for name, _ in found.named_parameters())


def test_experts_are_packed_wherever_they_are(family):
    base = base_of(family)
    packed = [name for name, module in base.named_modules() if isinstance(module, NF4Experts)]
    assert len(packed) == (4 if base.config.model_type == "qwen3_5_moe" else 0)
    original = AutoModelForImageTextToText.from_pretrained(family.model, dtype=torch.float32)
    for name in packed:
        for projection in PROJECTIONS:
            exact, found = (
                getattr(original.get_submodule(name), projection),
                dense_weights(base.get_submodule(name))[projection],
            )
            assert (
                found - exact
            ).norm() / exact.norm() < 0.12  # NF4's own error is about 0.09; a transpose's 1.4

"""The same loader, encoder, trainer and scorer on small models of the other families that the presets name."""

import dataclasses
import types

import numpy as np
import pandas as pd
import pytest
import torch
from bases import base_of, base_with_lora, lora_on
from stock import dense_weights
from transformers import (
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.artifacts.places import portable
from vqa_utils.metrics import accuracy, log_loss
from vqa_utils.model import hand_over
from vqa_utils.model.adapter import load_adapter
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.loading import load_processor
from vqa_utils.model.nf4.experts import PROJECTIONS, NF4Experts
from vqa_utils.planning.shapes import LAYERS
from vqa_utils.prompts import LETTERS, cyclic_order, reorder_options
from vqa_utils.scoring._orders import can_share
from vqa_utils.scoring.options import ScoringSettings, score_options
from vqa_utils.tiny_base._architecture import SPECIAL
from vqa_utils.training.fold import train_fold

pytestmark = pytest.mark.slow

TEXT = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 4096}  # fmt: skip


def ids(tokenizer):
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(list(SPECIAL[2:])), strict=True))


def qwen2_5_vl(tokenizer):
    """Patches of 14 px, windows in the vision tower, whose MLP has a gate_proj as the language model's has."""
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64, "patch_size": 14,
              "fullatt_block_indexes": [1], "window_size": 56}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, **ids(tokenizer)
    )
    images = Qwen2VLImageProcessor(patch_size=14, merge_size=2)
    processor = Qwen2_5_VLProcessor(
        images, tokenizer, Qwen2VLVideoProcessor(), chat_template=tokenizer.chat_template
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl(tokenizer):
    """The dense Qwen3-VL, patches of 16 px."""
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64, "patch_size": 16,
              "deepstack_visual_indexes": [0], "num_position_embeddings": 64}  # fmt: skip
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    }
    text = {**TEXT, "head_dim": 16, "rope_parameters": rope}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **ids(tokenizer))
    images = Qwen2VLImageProcessor(patch_size=16, merge_size=2)
    processor = Qwen3VLProcessor(
        images, tokenizer, Qwen3VLVideoProcessor(), chat_template=tokenizer.chat_template
    )
    return Qwen3VLForConditionalGeneration(config), processor


def qwen3_5(tokenizer, config=Qwen3_5Config, model=Qwen3_5ForConditionalGeneration, **mlp):
    """Linear attention in three of four layers, a gate on the queries of the fourth."""
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64, "patch_size": 16,
              "num_position_embeddings": 64}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "mrope_interleaved": True,
            "partial_rotary_factor": 0.5}  # fmt: skip
    heads = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }
    text = {**TEXT, "num_hidden_layers": 4, "head_dim": 16, "rope_parameters": rope, **heads, **mlp}
    made = config(text_config=text, vision_config=vision, **ids(tokenizer))
    images = Qwen2VLImageProcessor(patch_size=16, merge_size=2)
    processor = Qwen3VLProcessor(
        images, tokenizer, Qwen3VLVideoProcessor(), chat_template=tokenizer.chat_template
    )
    return model(made), processor


def qwen3_5_moe(tokenizer):
    """The same with experts, and one that every token goes through."""
    experts = {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 96,
    }
    return qwen3_5(tokenizer, Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, **experts)


FAMILIES = [qwen2_5_vl, qwen3_vl, qwen3_5, qwen3_5_moe]


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


def test_the_positions_are_those_of_the_model(family, challenge):
    batch = Encoder(load_processor(family), challenge.folder, family.image_side).examples(
        challenge.train.to_dict("records")
    )
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    wanted, _ = base_of(family).model.get_rope_index(**{name: batch[name] for name in names})
    assert torch.equal(batch["position_ids"], wanted)


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

"""Small models of the other families that the presets name, with their processors."""

from transformers import (
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

from vqa_utils.tiny_base._architecture import SPECIAL

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


def qwen3_vl(tokenizer, **sizes):
    """The dense Qwen3-VL, patches of 16 px."""
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64, "patch_size": 16,
              "deepstack_visual_indexes": [0], "num_position_embeddings": 64}  # fmt: skip
    text = {**TEXT, "head_dim": 16, **sizes}
    head = text["head_dim"]
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [head // 4, head // 8, head // 8],
        "mrope_interleaved": True,
    }
    vision["out_hidden_size"] = text["hidden_size"]
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

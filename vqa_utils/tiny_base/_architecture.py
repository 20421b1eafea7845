"""Build the tiny base and its processor: real Qwen3-VL-MoE classes with small numbers."""

from collections.abc import Iterable
from typing import Any

from transformers import Qwen2Tokenizer, Qwen3VLMoeConfig, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

PATCH_PX = 8  # a 64 x 64 image is 8 x 8 patches, merged 2 x 2 to 16 image tokens
VOCABULARY = 640
SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen's ChatML: what Qwen3-VL's own template makes of text and images
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""


def train_processor(texts: Iterable[str]) -> Qwen3VLProcessor:
    """Train a byte-level BPE tokenizer of Qwen's class, and join it with an image processor.

    All 256 bytes are tokens, so it reads any script (Korean takes three tokens per syllable).

    Args:
        texts: what the tokenizer learns its merges from.
    """
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        texts, VOCABULARY - len(SPECIAL), new_special_tokens=list(SPECIAL)
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    options: dict[str, Any] = {
        "patch_size": PATCH_PX,
        "merge_size": 2,
        "temporal_patch_size": 2,
        # 0 to 255 becomes -1 to 1, as in _fast_forward.patches
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    images = Qwen2VLImageProcessor(**options)
    videos = Qwen3VLVideoProcessor(**options)
    return Qwen3VLProcessor(images, tokenizer, videos, chat_template=CHAT_TEMPLATE)


def tiny_config(tokenizer: Qwen2Tokenizer, **text: int) -> Qwen3VLMoeConfig:
    """Describe a model of about 5 M parameters, 2.4 M of them in fused experts.

    The experts' sizes (256, 192, 96) all differ, so that a weight that was transposed by mistake
    does not fit.

    Args:
        tokenizer: gives the ids of the special tokens.
        text: replaces values of the text part, such as `num_hidden_layers`.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        # Rotary frequencies of time, row and column: half of head_dim in all
        "mrope_section": [8, 4, 4],
        "mrope_interleaved": True,
    }
    text_config = {
        "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "moe_intermediate_size": 96,
        "num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "rope_parameters": rope, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "router_aux_loss_coef": 0.01, **text,
    }  # fmt: skip
    # 64 positions are the 8 x 8 patches of an image. The outputs of vision blocks 1 and 2 are
    # also added to the image tokens after decoder layers 0 and 1 (DeepStack)
    vision_config = {
        "depth": 4, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "patch_size": PATCH_PX,
        "out_hidden_size": text_config["hidden_size"], "deepstack_visual_indexes": [1, 2],
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
    }  # fmt: skip
    return Qwen3VLMoeConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )

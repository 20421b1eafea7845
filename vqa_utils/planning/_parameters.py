"""List a model's parameters by name and shape, as transformers builds them from a config.json.

A test compares them with transformers' own, for every family. Shapes are [out, in] of a linear
layer, [experts, out, in] of a stack of them.
"""

from collections.abc import Iterator
from typing import Any

LAYERS = "model.language_model.layers"
VISION = "model.visual"

Fields = dict[str, Any]
Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]


def head_size(text: Fields) -> int:
    """Return the width of an attention head of the language model."""
    return text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]


def model_parameters(family: str, text: Fields, vision: Fields, *, tied: bool) -> Named:
    """List the whole model.

    Args:
        family: the model_type.
        text: the config of the language model, with num_experts (0 for a dense model).
        vision: the config of the vision tower.
        tied: True if the head is the embeddings.
    """
    hidden = text["hidden_size"]
    embeddings = (text["vocab_size"], hidden)
    yield from _vision(family, vision)
    yield "model.language_model.embed_tokens.weight", embeddings
    for layer in range(text["num_hidden_layers"]):
        yield from _decoder_layer(family, text, layer)
    yield "model.language_model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", embeddings


def _decoder_layer(family: str, text: Fields, layer: int) -> Named:
    name = f"{LAYERS}.{layer}"
    hidden = text["hidden_size"]
    if _has_linear_attention(family, text, layer):
        yield from _gated_delta_net(f"{name}.linear_attn", text)
    else:
        yield from _attention(f"{name}.self_attn", family, text)
    if _has_experts(text, layer):
        yield from _experts(f"{name}.mlp", text)
    else:
        yield from _gated_mlp(f"{name}.mlp", hidden, text["intermediate_size"])
    yield f"{name}.input_layernorm.weight", (hidden,)
    yield f"{name}.post_attention_layernorm.weight", (hidden,)


def _has_linear_attention(family: str, text: Fields, layer: int) -> bool:
    if not family.startswith("qwen3_5"):
        return False
    if text.get("layer_types"):
        return text["layer_types"][layer] == "linear_attention"
    # The last layer of each interval has full attention, the others linear
    return (layer + 1) % text.get("full_attention_interval", 4) != 0


def _has_experts(text: Fields, layer: int) -> bool:
    if not text["num_experts"] or layer in text.get("mlp_only_layers", ()):
        return False
    return (layer + 1) % text.get("decoder_sparse_step", 1) == 0


def _attention(name: str, family: str, text: Fields) -> Named:
    hidden = text["hidden_size"]
    head = head_size(text)
    queries = text["num_attention_heads"] * head
    keys = text["num_key_value_heads"] * head
    q_rows = queries
    if family.startswith("qwen3_5"):  # its queries carry an output gate
        q_rows = 2 * queries
    for projection, rows in (("q_proj", q_rows), ("k_proj", keys), ("v_proj", keys)):
        yield f"{name}.{projection}.weight", (rows, hidden)
        if family == "qwen2_5_vl":
            yield f"{name}.{projection}.bias", (rows,)
    yield f"{name}.o_proj.weight", (hidden, queries)
    if family != "qwen2_5_vl":
        yield f"{name}.q_norm.weight", (head,)
        yield f"{name}.k_norm.weight", (head,)


def _gated_delta_net(name: str, text: Fields) -> Named:
    """List Qwen3.5's linear attention."""
    hidden = text["hidden_size"]
    heads = text["linear_num_value_heads"]
    head = text["linear_value_head_dim"]
    values = heads * head
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    qkv = 2 * keys + values
    yield f"{name}.dt_bias", (heads,)
    yield f"{name}.A_log", (heads,)  # the decay rate's logarithm
    # Depthwise: one filter per channel
    yield f"{name}.conv1d.weight", (qkv, 1, text["linear_conv_kernel_dim"])
    yield f"{name}.norm.weight", (head,)
    yield f"{name}.out_proj.weight", (hidden, values)
    yield f"{name}.in_proj_qkv.weight", (qkv, hidden)
    yield f"{name}.in_proj_z.weight", (values, hidden)  # output gate
    yield f"{name}.in_proj_b.weight", (heads, hidden)  # write strength
    yield f"{name}.in_proj_a.weight", (heads, hidden)  # decay


def _experts(name: str, text: Fields) -> Named:
    """List a mixture of experts: two stacks, the router, and in Qwen3.5 a shared expert."""
    hidden = text["hidden_size"]
    experts = text["num_experts"]
    width = text["moe_intermediate_size"]
    yield f"{name}.experts.gate_up_proj", (experts, 2 * width, hidden)
    yield f"{name}.experts.down_proj", (experts, hidden, width)
    yield f"{name}.gate.weight", (experts, hidden)  # the router, not an MLP's gate
    shared_width = text.get("shared_expert_intermediate_size")
    if shared_width:
        yield from _gated_mlp(f"{name}.shared_expert", hidden, shared_width)
        yield f"{name}.shared_expert_gate.weight", (1, hidden)


def _gated_mlp(name: str, hidden: int, width: int, *, biased: bool = False) -> Named:
    for projection, rows, columns in (
        ("gate_proj", width, hidden),
        ("up_proj", width, hidden),
        ("down_proj", hidden, width),
    ):
        yield f"{name}.{projection}.weight", (rows, columns)
        if biased:
            yield f"{name}.{projection}.bias", (rows,)


def _vision(family: str, vision: Fields) -> Named:
    """List the vision tower: patches, blocks, and the merger of patches into image tokens."""
    hidden = vision["hidden_size"]
    patch = vision["patch_size"]
    channels = vision.get("in_channels") or vision.get("in_chans", 3)
    # A Conv3d: [out, in, frames, height, width]
    patches = (hidden, channels, vision["temporal_patch_size"], patch, patch)
    old = family == "qwen2_5_vl"
    yield f"{VISION}.patch_embed.proj.weight", patches
    if not old:
        yield f"{VISION}.patch_embed.proj.bias", (hidden,)
        yield f"{VISION}.pos_embed.weight", (vision["num_position_embeddings"], hidden)
    for number in range(vision["depth"]):
        block = f"{VISION}.blocks.{number}"
        yield from _vision_block(block, hidden, vision["intermediate_size"], old=old)
    yield from _old_merger(vision) if old else _mergers(vision)


def _vision_block(name: str, hidden: int, width: int, *, old: bool) -> Named:
    for norm in ("norm1", "norm2"):
        if old:
            yield f"{name}.{norm}.weight", (hidden,)
        else:
            yield from _norm(f"{name}.{norm}", hidden)
    yield from _linear(f"{name}.attn.qkv", 3 * hidden, hidden)
    yield from _linear(f"{name}.attn.proj", hidden, hidden)
    if old:
        yield from _gated_mlp(f"{name}.mlp", hidden, width, biased=True)
    else:
        yield from _linear(f"{name}.mlp.linear_fc1", width, hidden)
        yield from _linear(f"{name}.mlp.linear_fc2", hidden, width)


def _old_merger(vision: Fields) -> Named:
    """List the merger of Qwen2.5-VL."""
    merged = vision["hidden_size"] * vision["spatial_merge_size"] ** 2
    yield f"{VISION}.merger.ln_q.weight", (vision["hidden_size"],)
    yield from _linear(f"{VISION}.merger.mlp.0", merged, merged)
    yield from _linear(f"{VISION}.merger.mlp.2", vision["out_hidden_size"], merged)


def _mergers(vision: Fields) -> Named:
    """List the merger, and those of DeepStack's features for the first layers."""
    merged = vision["hidden_size"] * vision["spatial_merge_size"] ** 2
    # The merger normalises each patch; DeepStack's normalise the merged patches
    norm_widths = {"merger": vision["hidden_size"]}
    for number, _ in enumerate(vision.get("deepstack_visual_indexes") or ()):
        norm_widths[f"deepstack_merger_list.{number}"] = merged
    for name, norm_width in norm_widths.items():
        yield from _norm(f"{VISION}.{name}.norm", norm_width)
        yield from _linear(f"{VISION}.{name}.linear_fc1", merged, merged)
        yield from _linear(f"{VISION}.{name}.linear_fc2", vision["out_hidden_size"], merged)


def _norm(name: str, width: int) -> Named:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _linear(name: str, rows: int, columns: int) -> Named:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)

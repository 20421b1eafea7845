"""A model's parameters by name and shape, from its config.json alone: what the memory plan counts. Free of torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vqa_utils.artifacts.paths import SHAPES
from vqa_utils.config import Config
from vqa_utils.errors import VqaError
from vqa_utils.planning._source import config_of

FAMILIES = ("qwen3_vl_moe", "qwen3_vl", "qwen2_5_vl", "qwen3_5", "qwen3_5_moe")
GROUPS = ("experts", "attention", "mlp", "embeddings", "head", "vision", "norms and router")
LAYERS = "model.language_model.layers"
Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]


class ShapeError(VqaError):
    """A config.json that the plan cannot read."""


@dataclass(frozen=True)
class ModelShape:
    """What the plan needs to know of a model; sizes in elements."""

    family: str
    parameters: dict[str, Shape]
    """Each parameter's name in transformers' model, and its shape."""
    hidden: int
    layers: int
    attention_width: int
    """Query heads times their size."""
    key_value_width: int
    mlp_width: int
    """Of a dense MLP, or of one expert."""
    experts: int
    """In a layer; 0 for a dense model."""
    experts_per_token: int
    vocabulary: int
    vision_hidden: int
    vision_mlp_width: int
    patch_px: int
    pixels_per_token: int
    """An image token stands for a square of merged patches."""
    deepstack_layers: int
    """The first decoder layers, to which features of the vision tower are added."""


def published_config(model: str) -> dict[str, Any] | None:
    """The shipped config.json (its fields that make the shape) of a model that a preset names; None for others."""
    file = SHAPES / f"{model.rpartition('/')[2]}.json"
    return (
        json.loads(file.read_text(encoding="utf-8"))
        if model.startswith("Qwen/") and file.exists()
        else None
    )


def read_shape(config: dict[str, Any]) -> ModelShape:
    """The shape of the model that transformers builds from a config.json.

    Raises:
        ShapeError: a family that the plan does not know, or a missing field.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ShapeError(
            f"config.json: expected a model_type of {', '.join(FAMILIES)}, found {family!r}; --set device_map=auto leaves it to "
            "accelerate, without a plan"
        )
    text = dict(
        config.get("text_config", config)
    )  # Qwen2.5-VL's published file has the text part's fields at its top
    text["num_experts"] = text.get(
        "num_experts", text.get("num_local_experts", 0)
    )  # transformers saves the second name
    vision = config["vision_config"]
    try:
        head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        return ModelShape(
            family=family,
            parameters=dict(
                _parameters(family, text, vision, head, bool(config.get("tie_word_embeddings")))
            ),
            hidden=text["hidden_size"],
            layers=text["num_hidden_layers"],
            attention_width=text["num_attention_heads"] * head,
            key_value_width=text["num_key_value_heads"] * head,
            mlp_width=text["moe_intermediate_size"]
            if text["num_experts"]
            else text["intermediate_size"],
            experts=text["num_experts"],
            experts_per_token=text.get("num_experts_per_tok", 0),
            vocabulary=text["vocab_size"],
            vision_hidden=vision["hidden_size"],
            vision_mlp_width=vision["intermediate_size"],
            patch_px=vision["patch_size"],
            pixels_per_token=(vision["patch_size"] * vision["spatial_merge_size"]) ** 2,
            deepstack_layers=len(vision.get("deepstack_visual_indexes") or ()),
        )
    except KeyError as missing:
        raise ShapeError(
            f"config.json of family {family}: expected a field {missing}, found none"
        ) from missing


def group_of(name: str) -> str:
    """The group of weights that a parameter is counted in, one of GROUPS."""
    if name.startswith("model.visual"):
        return "vision"
    if "norm" in name or ".mlp.gate." in name:
        return "norms and router"
    for part, group in {
        "embed_tokens": "embeddings",
        "lm_head": "head",
        ".experts.": "experts",
        "attn.": "attention",
    }.items():
        if part in name:
            return group
    return "mlp"


def is_matrix(name: str, shape: Shape) -> bool:
    """Whether a parameter is a matrix of the language model (or a stack of them) that is packed into 4 bits."""
    return group_of(name) in ("experts", "attention", "mlp") and name.endswith(
        ("_proj", "_proj.weight", *_OTHER_MATRICES)
    )


_OTHER_MATRICES = (
    "in_proj_qkv.weight",
    "in_proj_z.weight",
    "in_proj_a.weight",
    "in_proj_b.weight",
    "shared_expert_gate.weight",
)


def _parameters(
    family: str, text: dict[str, Any], vision: dict[str, Any], head: int, tied: bool
) -> Named:
    yield from _vision(family, vision)
    hidden = text["hidden_size"]
    yield "model.language_model.embed_tokens.weight", (text["vocab_size"], hidden)
    for layer in range(text["num_hidden_layers"]):
        name = f"{LAYERS}.{layer}"
        if _is_linear_attention(family, text, layer):
            yield from _gated_delta_net(f"{name}.linear_attn", text)
        else:
            yield from _attention(f"{name}.self_attn", family, text, head)
        yield from _mlp(f"{name}.mlp", text, layer)
        yield f"{name}.input_layernorm.weight", (hidden,)
        yield f"{name}.post_attention_layernorm.weight", (hidden,)
    yield "model.language_model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (text["vocab_size"], hidden)


def _is_linear_attention(family: str, text: dict[str, Any], layer: int) -> bool:
    if not family.startswith("qwen3_5"):
        return False
    if text.get("layer_types"):
        return text["layer_types"][layer] == "linear_attention"
    return (layer + 1) % text.get("full_attention_interval", 4) != 0


def _attention(name: str, family: str, text: dict[str, Any], head: int) -> Named:
    hidden, queries, keys = (
        text["hidden_size"],
        text["num_attention_heads"] * head,
        text["num_key_value_heads"] * head,
    )
    gated = 2 if family.startswith("qwen3_5") else 1  # Qwen3.5's queries carry an output gate
    for projection, rows in {"q_proj": queries * gated, "k_proj": keys, "v_proj": keys}.items():
        yield f"{name}.{projection}.weight", (rows, hidden)
        if family == "qwen2_5_vl":
            yield f"{name}.{projection}.bias", (rows,)
    yield f"{name}.o_proj.weight", (hidden, queries)
    if family != "qwen2_5_vl":
        yield f"{name}.q_norm.weight", (head,)
        yield f"{name}.k_norm.weight", (head,)


def _gated_delta_net(name: str, text: dict[str, Any]) -> Named:
    hidden, heads, head = (
        text["hidden_size"],
        text["linear_num_value_heads"],
        text["linear_value_head_dim"],
    )
    values, keys = heads * head, text["linear_num_key_heads"] * text["linear_key_head_dim"]
    yield f"{name}.dt_bias", (heads,)
    yield f"{name}.A_log", (heads,)
    yield f"{name}.conv1d.weight", (2 * keys + values, 1, text["linear_conv_kernel_dim"])
    yield f"{name}.norm.weight", (head,)
    yield f"{name}.out_proj.weight", (hidden, values)
    for projection, rows in {"qkv": 2 * keys + values, "z": values, "b": heads, "a": heads}.items():
        yield f"{name}.in_proj_{projection}.weight", (rows, hidden)


def _mlp(name: str, text: dict[str, Any], layer: int) -> Named:
    hidden, experts = text["hidden_size"], text["num_experts"]
    sparse = (
        experts
        and layer not in text.get("mlp_only_layers", ())
        and (layer + 1) % text.get("decoder_sparse_step", 1) == 0
    )
    if not sparse:
        yield from _gated_mlp(name, hidden, text["intermediate_size"])
        return
    width = text["moe_intermediate_size"]
    yield f"{name}.experts.gate_up_proj", (experts, 2 * width, hidden)
    yield f"{name}.experts.down_proj", (experts, hidden, width)
    yield f"{name}.gate.weight", (experts, hidden)
    if shared := text.get("shared_expert_intermediate_size"):
        yield from _gated_mlp(f"{name}.shared_expert", hidden, shared)
        yield f"{name}.shared_expert_gate.weight", (1, hidden)


def _gated_mlp(name: str, hidden: int, width: int, *, biased: bool = False) -> Named:
    for projection, shape in {
        "gate_proj": (width, hidden),
        "up_proj": (width, hidden),
        "down_proj": (hidden, width),
    }.items():
        yield f"{name}.{projection}.weight", shape
        if biased:
            yield f"{name}.{projection}.bias", shape[:1]


def _vision(family: str, vision: dict[str, Any]) -> Named:
    old = family == "qwen2_5_vl"
    name, hidden, patch = "model.visual", vision["hidden_size"], vision["patch_size"]
    channels = vision.get("in_channels", vision.get("in_chans", 3))
    yield (
        f"{name}.patch_embed.proj.weight",
        (hidden, channels, vision["temporal_patch_size"], patch, patch),
    )
    if not old:
        yield f"{name}.patch_embed.proj.bias", (hidden,)
        yield f"{name}.pos_embed.weight", (vision["num_position_embeddings"], hidden)
    for layer in range(vision["depth"]):
        yield from _vision_block(
            f"{name}.blocks.{layer}", hidden, vision["intermediate_size"], old=old
        )
    merged = hidden * vision["spatial_merge_size"] ** 2
    if old:
        yield f"{name}.merger.ln_q.weight", (hidden,)
        yield from _linear(f"{name}.merger.mlp.0", merged, merged)
        yield from _linear(f"{name}.merger.mlp.2", vision["out_hidden_size"], merged)
        return
    deepstack = [
        f"deepstack_merger_list.{i}"
        for i in range(len(vision.get("deepstack_visual_indexes") or ()))
    ]
    for merger in ["merger", *deepstack]:
        yield from _norm(f"{name}.{merger}.norm", hidden if merger == "merger" else merged)
        yield from _linear(f"{name}.{merger}.linear_fc1", merged, merged)
        yield from _linear(f"{name}.{merger}.linear_fc2", vision["out_hidden_size"], merged)


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


def _norm(name: str, width: int) -> Named:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _linear(name: str, rows: int, columns: int) -> Named:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def shape_of(config: Config) -> ModelShape:
    """The shape of the settings' model, from the shipped files, a local folder, or the hub.

    Raises:
        SourceError: the model is nowhere.
        ShapeError: it is of a family that the plan does not know.
    """
    return read_shape(published_config(config.model) or config_of(config.model))

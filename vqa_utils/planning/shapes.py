"""Read a model's shape from its config.json: all parameters by name, and the sizes to plan with."""

import functools
import json
from dataclasses import dataclass
from typing import Any

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import SHAPES
from vqa_utils.config import Config
from vqa_utils.errors import VqaError
from vqa_utils.planning._parameters import LAYERS, VISION, Shape, head_size, model_parameters
from vqa_utils.planning.source.check import config_of, source_of

FAMILIES = ("qwen3_vl_moe", "qwen3_vl", "qwen2_5_vl", "qwen3_5", "qwen3_5_moe")
GROUPS = ("experts", "attention", "mlp", "embeddings", "head", "vision", "norms and router")

# Of LoRA, with which a dense layer is fused
ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
# The group of a parameter by a part of its name; the first that fits
_GROUP_OF_PART = {
    "embed_tokens": "embeddings",
    "lm_head": "head",
    ".experts.": "experts",
    "attn.": "attention",
}
# Ends of the names of matrices that are packed into 4 bits: projections, and some of Qwen3.5's
_MATRIX_ENDINGS = (
    "_proj",
    "_proj.weight",
    "in_proj_qkv.weight",
    "in_proj_z.weight",
    "in_proj_a.weight",
    "in_proj_b.weight",
    "shared_expert_gate.weight",
)


class ShapeError(VqaError):
    """A config.json of a family without a plan, or without a field."""


@dataclass(frozen=True, eq=False)  # a key of caches: `shape_of` builds it once for each model
class ModelShape:
    """The sizes of a model to plan with, in elements."""

    family: str
    """The model_type."""
    parameters: dict[str, Shape]
    """Each parameter's shape by its name in transformers' model."""
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

    def is_fused(self, config: Config) -> bool:
        """Tell whether decoder layers are one node of autograd each: model/fast/_layer.py."""
        if self.experts:
            return True
        has_all = set(config.target_modules) == set(ATTENTION_TARGETS)
        return self.family == "qwen3_vl" and config.quantization == "nf4" and has_all

    @property
    def layer_names(self) -> list[str]:
        """The decoder layers' modules, in order."""
        return [f"{LAYERS}.{number}" for number in range(self.layers)]


def shape_of(config: Config) -> ModelShape:
    """Read the shape of the settings' model: from the shipped files, a local folder, or the hub.

    A shape is built once for all equal config.json.

    Raises:
        SourceError: the model is nowhere.
        ShapeError: it is of a family without a plan.
    """
    # Shipped files come first: they need no network
    content = published_config(config.model) or config_of(source_of(config))
    # As text, because a dict cannot be a key of the cache
    return _shape_of_content(json.dumps(content, sort_keys=True))


def published_config(model: str) -> dict[str, Any] | None:
    """Read the shipped config.json of a preset's model; None for others.

    It has the fields of the shape only.
    """
    owner, _, name = model.rpartition("/")
    file = SHAPES / f"{name}.json"
    if owner == "Qwen" and file.exists():
        return read_json(file)
    return None


@functools.cache
def _shape_of_content(content: str) -> ModelShape:
    return read_shape(json.loads(content))


def read_shape(config: dict[str, Any]) -> ModelShape:
    """Build the shape of a config.json's model, as transformers makes it.

    Raises:
        ShapeError: a family without a plan, or a missing field.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ShapeError(
            f"config.json: expected a model_type of {', '.join(FAMILIES)}, found {family!r}; "
            "--set device_map=auto leaves it to accelerate, without a plan"
        )
    # Qwen2.5-VL's published file has the fields of the language model at its top
    text = dict(config.get("text_config", config))
    # transformers saves the number of experts under its second name
    text["num_experts"] = text.get("num_experts", text.get("num_local_experts", 0))
    tied = bool(config.get("tie_word_embeddings"))
    try:
        return _shape(family, text, config["vision_config"], tied=tied)
    except KeyError as missing:
        raise ShapeError(
            f"config.json of family {family}: expected a field {missing}, found none"
        ) from missing


def _shape(family: str, text: dict[str, Any], vision: dict[str, Any], *, tied: bool) -> ModelShape:
    head = head_size(text)
    mlp_field = "moe_intermediate_size" if text["num_experts"] else "intermediate_size"
    return ModelShape(
        family=family,
        parameters=dict(model_parameters(family, text, vision, tied=tied)),
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        attention_width=text["num_attention_heads"] * head,
        key_value_width=text["num_key_value_heads"] * head,
        mlp_width=text[mlp_field],
        experts=text["num_experts"],
        experts_per_token=text.get("num_experts_per_tok", 0),
        vocabulary=text["vocab_size"],
        vision_hidden=vision["hidden_size"],
        vision_mlp_width=vision["intermediate_size"],
        patch_px=vision["patch_size"],
        # 32 x 32 px in Qwen3-VL, 28 x 28 px in Qwen2.5-VL
        pixels_per_token=(vision["patch_size"] * vision["spatial_merge_size"]) ** 2,
        deepstack_layers=len(vision.get("deepstack_visual_indexes") or ()),
    )


def group_of(name: str) -> str:
    """Find the group of weights to count a parameter in, one of GROUPS."""
    if name.startswith(VISION):
        return "vision"
    # First: a head's norm (self_attn.q_norm) would match "attn." below
    if "norm" in name or ".mlp.gate." in name:
        return "norms and router"
    for part, group in _GROUP_OF_PART.items():
        if part in name:
            return group
    return "mlp"


def is_matrix(name: str) -> bool:
    """Tell if a parameter is a matrix to pack into 4 bits, or a stack of them."""
    in_layer = group_of(name) in ("experts", "attention", "mlp")
    return in_layer and name.endswith(_MATRIX_ENDINGS)

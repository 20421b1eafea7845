"""Count a GPU's bytes besides the weights: in training, scoring, loading.

Each tensor of the fused decoder layer is counted (fp16 products over an fp32 residual stream,
activation checkpointing by layer). Qwen2.5's and Qwen3.5's dense layers are transformers' own: their
temporaries, the factors FITTED_*, were fitted on measured peaks. All were checked on measured
peaks: tests/bench/README.md.

Most counts are bytes per token, in the order of a layer's work:

    residual stream -> norm -> q, k, v -> sdpa -> o -> + -> norm -> experts or MLP -> +
    [hidden] fp32      fp16    fp16       fp16         fp32                           fp32
"""

from typing import NamedTuple

from vqa_utils.config import Config
from vqa_utils.planning import images
from vqa_utils.planning.batches import LOGIT_POSITIONS, Batch
from vqa_utils.planning.memory import EXPERTS_AT_ONCE, FP16, FP32, Bytes, chunks_of_rows
from vqa_utils.planning.shapes import ModelShape

INT64 = 8  # bytes

# Expert slots per routed token, padding included: 1.20 was recorded at 16 rows a pass. A T4's
# chunks have less padding
SLOTS_PER_ROUTED_TOKEN = 1.25

# Temporaries of the attention in transformers' own layer, in bytes per token and unit of query width; fitted
FITTED_ATTENTION_BACKWARD = 28
FITTED_ATTENTION_FORWARD = 35

# Kinds of activations in training, as the plan's table names them
SAVED = "saved for the backward"
WORKING = "one layer's temporaries"
DENSE = "dequantised weights"
PIXELS = "images"
LOGITS = "logits"


class Share(NamedTuple):
    """A GPU's share of a model."""

    layers: int
    """Decoder layers."""
    uncheckpointed: int
    """How many of these skip activation checkpointing."""
    has_tower: bool
    """The vision tower is here, or was: a step holds its images to the end."""
    has_head: bool
    """And so the logits."""


def training_bytes(
    shape: ModelShape,
    config: Config,
    batch: Batch,
    share: Share,
    experts_at_once: int = EXPERTS_AT_ONCE,
) -> Bytes:
    """Count the activations at the peak of a training step: in the backward of a GPU's last layer.

    By then the logits are gone, so they count only where they need more than that layer.

    Args:
        shape: the model's.
        config: the settings of the run.
        batch: one pass of training.
        share: the GPU's.
        experts_at_once: of `dense_bytes`.
    """
    saved = share.layers * input_bytes(shape, batch)
    saved += share.uncheckpointed * saved_bytes(shape, config, batch)
    working = 0
    dense = 0
    if share.layers:
        is_checkpointed = share.uncheckpointed == 0
        per_token = _working_in_backward(shape, config, checkpointed=is_checkpointed)
        working = int(per_token) * batch.tokens
        dense = dense_bytes(shape, experts_at_once, fused=shape.is_fused(config))
    pixels = images.input_bytes(shape, batch) if share.has_tower else 0
    logits = max(0, logits_bytes(shape, batch) - working - dense) if share.has_head else 0
    return {SAVED: saved, PIXELS: pixels, WORKING: working, DENSE: dense, LOGITS: logits}


def input_bytes(shape: ModelShape, batch: Batch) -> int:
    """Count the bytes that every decoder layer saves: its input and its experts' routing."""
    residual_stream = FP32 * shape.hidden
    # For each expert of a token: weight (fp32), expert (int64) and two places (int64)
    routing = (FP32 + INT64 + 2 * INT64) * shape.experts_per_token
    return (residual_stream + routing) * batch.tokens


def saved_bytes(shape: ModelShape, config: Config, batch: Batch) -> int:
    """Count the bytes that an uncheckpointed layer saves in addition to `input_bytes`."""
    return (_attention_saved(shape, config) + _mlp_saved(shape, config)) * batch.tokens


def _attention_saved(shape: ModelShape, config: Config) -> int:
    """Count the bytes per token that the attention half saves for its backward."""
    hidden = shape.hidden
    queries = shape.attention_width
    keys = shape.key_value_width
    saved = FP32 * hidden  # a norm's input: the experts' norm, or a dense layer's first
    saved += FP16 * hidden  # the input of q, k and v
    saved += FP16 * (queries + 2 * keys)  # q, k and v
    saved += 4 * FP16 * queries  # sdpa's q, its k and v (repeated for all heads), its output
    if config.lora_dropout:
        saved += FP16 * queries  # the output after dropout, for the LoRA of o
    if shape.is_fused(config):
        saved += FP16 * hidden  # the input of the second half
    return saved


def _mlp_saved(shape: ModelShape, config: Config) -> int:
    """Count the bytes per token that a dense MLP saves for its backward; 0 for experts."""
    if shape.experts:
        return 0
    if shape.is_fused(config):
        return FP16 * 2 * shape.mlp_width  # gate and up
    saved = FP32 * shape.hidden  # the norm's input
    saved += FP16 * shape.mlp_width  # gate
    saved += FP16 * shape.mlp_width  # its activation
    saved += FP16 * shape.mlp_width  # up
    return saved


def _working_in_backward(shape: ModelShape, config: Config, *, checkpointed: bool) -> float:
    """Count the bytes per token of one layer's temporaries in its backward.

    A checkpointed layer recomputes the tensors of its attention. Others count them as saved.
    """
    if shape.is_fused(config):
        # Gradients of the residual stream after the layer and between its halves, in two types
        streams = 2 * (FP32 + FP16) * shape.hidden
        # At most six: gradients of sdpa's output, its q, k and v, and of q, k and v before them
        attention = 6 * FP16 * shape.attention_width
        second_half = _second_half_working(shape, training=True)
        if checkpointed:
            return streams + max(attention, second_half) + _attention_saved(shape, config)
        # Gate and up were counted as saved, and are gone by the time of the attention's backward
        if not shape.experts:
            second_half -= FP16 * 2 * _mlp_chunk(shape)
        return streams + max(attention - _mlp_saved(shape, config), second_half)
    attention = FITTED_ATTENTION_BACKWARD * shape.attention_width
    mlp = 2 * FP32 * shape.hidden + 6 * FP16 * shape.mlp_width
    working = max(attention, mlp)
    if checkpointed:
        return working + _attention_saved(shape, config)
    # What the MLP saved is gone by the time of the attention's backward
    return working - _mlp_saved(shape, config)


def _second_half_working(shape: ModelShape, *, training: bool) -> float:
    """Count the bytes per token of a fused layer's MLP, or of its experts' slots in use.

    Nearly all slots belong to the first, busiest group of experts; all count as live at once.
    """
    if not shape.experts:
        # The product of gate and up, or its gradient, whole; of a chunk, gate and up, and it again
        return FP16 * (shape.mlp_width + 3 * _mlp_chunk(shape))
    slot = FP16 * shape.hidden  # the token's input, or later its output
    if training:
        slot += FP16 * shape.hidden  # its gradient
    slot += FP16 * 2 * shape.mlp_width  # gate and up
    slot += FP16 * shape.mlp_width  # their product
    return SLOTS_PER_ROUTED_TOKEN * shape.experts_per_token * slot


def _mlp_chunk(shape: ModelShape) -> int:
    """Count the hidden values that a fused MLP computes at a time, for a token."""
    return shape.mlp_width // chunks_of_rows(shape.mlp_width, shape.hidden)


def dense_bytes(
    shape: ModelShape, experts_at_once: int = EXPERTS_AT_ONCE, *, fused: bool = True
) -> int:
    """Count the bytes of the dense 16-bit weights held at once: a group of experts, or a matrix."""
    matrix = FP16 * shape.mlp_width * shape.hidden
    if not shape.experts and not fused:
        return matrix
    if not shape.experts:
        qkv = FP16 * (shape.attention_width + 2 * shape.key_value_width) * shape.hidden
        return max(qkv, matrix // chunks_of_rows(shape.mlp_width, shape.hidden))
    gate_up_and_down = 3
    return min(experts_at_once, shape.experts) * gate_up_and_down * matrix


def logits_bytes(shape: ModelShape, batch: Batch) -> int:
    """Count the bytes of the logits in fp16 and fp32, their log-softmax and its gradient."""
    # Elements of [rows, positions, vocabulary]; in all 8.5 MB per row of the 30B
    logits = batch.rows * LOGIT_POSITIONS * shape.vocabulary
    return logits * (FP16 + FP32 + FP32 + FP32)


def scoring_bytes(
    shape: ModelShape,
    config: Config,
    batch: Batch,
    *,
    first: bool,
    experts_at_once: int = EXPERTS_AT_ONCE,
) -> int:
    """Count the bytes besides the weights in a layer's forward without gradients.

    Args:
        shape: the model's.
        config: the settings of the run.
        batch: one pass of scoring.
        first: True for the GPU with the vision tower and the embeddings. The forward holds images
            and embeddings to its end.
        experts_at_once: of `dense_bytes`.
    """
    tokens_per_row = batch.tokens // batch.rows
    # Bytes per token with several option orders or with padding: bool, and an fp16 bias
    mask = (1 + FP16) * tokens_per_row if batch.rows > 1 else 0
    if not shape.is_fused(config):
        streams = 3 * FP32 * shape.hidden
        attention = FITTED_ATTENTION_FORWARD * shape.attention_width
        mlp = 2 * FP32 * shape.hidden + 4 * FP16 * shape.mlp_width
        dense_layer = mask + streams + max(attention, mlp)
        return dense_layer * batch.tokens + dense_bytes(shape, fused=False)
    # The residual stream before, within and after the layer, and the norm of the second half
    streams = (3 * FP32 + FP16) * shape.hidden
    of_images = 0
    if first:
        # The embeddings as made and as moved, and the stream before DeepStack's last addition
        streams += 3 * FP32 * shape.hidden
        of_images = images.image_bytes(shape, batch)
    attention = 5 * FP16 * shape.attention_width  # q, k and v, and sdpa's k, v and output
    working = mask + streams + max(attention, _second_half_working(shape, training=False))
    return int(working) * batch.tokens + dense_bytes(shape, experts_at_once) + of_images


def held_in_scoring(shape: ModelShape, batch: Batch) -> int:
    """Count the bytes that a forward holds on the first GPU while it is on another."""
    embeddings = 3 * FP32 * shape.hidden  # as made and as moved, and the stream at the cut
    mask = (1 + FP16) * (batch.tokens // batch.rows)  # of several option orders, and its bias
    return (embeddings + mask) * batch.tokens + images.image_bytes(shape, batch)


def loading_bytes(shape: ModelShape) -> int:
    """Count the bytes of the largest stack of experts while it is quantised.

    It is held twice in 16 bits: as read, and transposed.
    """
    # Weights of one layer's [experts, 2 x width, hidden]: 403 million of the 30B, so 1.5 GiB
    gate_up = shape.experts * 2 * shape.mlp_width * shape.hidden
    return 2 * FP16 * gate_up

"""List the kernels of each part of the model, with the cost of a unit of their work.

These are the kernels of the fused decoder layer, the experts, LoRA and the vision tower (`ops`,
`model.fast`, `model.nf4`). Matrix products count their operations (with the experts' padding) and
the bytes of their weights; the bytes of their inputs and outputs are left to the rate they
reach. All other kernels count the bytes they read and write.

Left out: the optimizer's step, LoRA's own products, the recurrence of linear attention.
"""

import math
from dataclasses import dataclass

from vqa_utils.config import Config
from vqa_utils.nf4_format import BLOCK
from vqa_utils.planning.activations import LOGIT_POSITIONS, Batch
from vqa_utils.planning.memory import FP16, FP32
from vqa_utils.planning.shapes import VISION, ModelShape, Shape, is_matrix

FORWARD = "forward"
RECOMPUTATION = "recomputation"  # of a checkpointed layer, before its backward
BACKWARD = "backward"
FORWARDS = (FORWARD, RECOMPUTATION)


@dataclass(frozen=True)
class Kernel:
    """Kernels of one kind: their cost for each unit (a token, an expert slot, a weight)."""

    name: str
    units: float
    phases: tuple[str, ...]
    """The phases it runs in; twice if named twice."""
    operations: float = 0
    """Of matrix products, for a unit. A multiplication and an addition are two."""
    reads: float = 0
    """Bytes for a unit."""
    writes: float = 0
    """Bytes for a unit."""


def matrices(on_gpu: dict[str, Shape], config: Config, batch: Batch) -> list[Kernel]:
    """List the matrices of decoder layers but the experts: made dense, then multiplied."""
    reads: float = FP16  # by the product
    writes = 0
    if config.quantization == "nf4":  # unpacking reads a weight and its share of the fp32 scale
        reads += 0.5 + FP32 / BLOCK
        writes += FP16
    kernels = []
    for name, size in on_gpu.items():
        is_stack_of_experts = len(size) == 3
        if is_stack_of_experts or not is_matrix(name, size):
            continue
        phases: tuple[str, ...] = (FORWARD, RECOMPUTATION, BACKWARD)
        if name.endswith("mlp.down_proj.weight"):  # the backward needs no output of it
            phases = (FORWARD, BACKWARD)
        operations = 2 * batch.tokens
        kernels.append(Kernel(name, math.prod(size), phases, operations, reads, writes))
    return kernels


def attention_forward(shape: ModelShape, batch: Batch, *, causal: bool) -> list[Kernel]:
    """List the kernels of a layer's attention half beside its matrices; units are tokens."""
    tokens = batch.tokens
    hidden = shape.hidden
    queries = shape.attention_width
    qkv = queries + 2 * shape.key_value_width
    return [
        Kernel("norm before q, k and v", tokens, FORWARDS, reads=4 * hidden, writes=2 * hidden),
        # In: q, k and v. Out: q, and k and v repeated for all heads
        Kernel("head norms, rotation, repetition", tokens, FORWARDS, 0, 2 * qkv, 6 * queries),
        Kernel(
            "sdpa",
            tokens,
            FORWARDS,
            operations=_sdpa_operations(shape, batch, causal=causal),
            reads=6 * queries,
            writes=2 * queries,
        ),
        # In: the residual stream in fp32, and o's output. Out: their sum, its norm in fp16 and fp32
        Kernel("sum and second norm", tokens, FORWARDS, reads=6 * hidden, writes=10 * hidden),
    ]


def attention_backward(shape: ModelShape, batch: Batch, *, causal: bool) -> list[Kernel]:
    """List the kernels of the same half's backward."""
    tokens = batch.tokens
    hidden = shape.hidden
    queries = shape.attention_width
    qkv = queries + 2 * shape.key_value_width
    backward = (BACKWARD,)
    # Five products where the forward has two
    operations = 2.5 * _sdpa_operations(shape, batch, causal=causal)
    return [
        # In: the stream, and in fp32 the gradients of the norm and of the sum. Out: fp32 and fp16
        Kernel("second norm", tokens, backward, reads=12 * hidden, writes=6 * hidden),
        # Several kernels; bytes read and written together
        Kernel("sdpa", tokens, backward, operations, reads=24 * queries),
        # In: the gradients of q, k and v, and q, k and v themselves
        Kernel("heads", tokens, backward, 0, reads=6 * queries + 2 * qkv, writes=2 * qkv),
        # In: the layer's input, the norm's gradient in fp16, the stream's. Out: fp32
        Kernel("first norm", tokens, backward, reads=10 * hidden, writes=4 * hidden),
    ]


def _sdpa_operations(shape: ModelShape, batch: Batch, *, causal: bool) -> float:
    """Count the operations a token of scores, and of sums over positions.

    Causal attention sees half of a row's positions. With a mask, hidden ones are computed too.
    """
    seen = batch.tokens / batch.rows
    if causal:
        seen /= 2
    return 2 * 2 * shape.attention_width * seen


def lora(shape: ModelShape, config: Config, batch: Batch) -> list[Kernel]:
    """List LoRA's kernels in training; scoring adds LoRA into the matrices. Units are tokens."""
    inputs = shape.hidden + shape.attention_width  # of q, k and v together, and of o
    qkv = shape.attention_width + 2 * shape.key_value_width
    outputs = qkv + shape.hidden
    every = (FORWARD, RECOMPUTATION, BACKWARD)
    # Its product is added to the matrix's: in and out
    kernels = [Kernel("sum", batch.tokens, every, reads=2 * outputs, writes=2 * outputs)]
    if config.lora_dropout:
        # In the backward: of the input once more, and of its gradient
        phases = (*every, BACKWARD)
        kernels.append(Kernel("dropout", batch.tokens, phases, 0, 2 * inputs, 2 * inputs))
    return kernels


def routing(shape: ModelShape, batch: Batch) -> list[Kernel]:
    """List the kernels over tokens, and over pairs of a token and one of its experts."""
    tokens = batch.tokens
    pairs = shape.experts_per_token * tokens
    hidden = shape.hidden
    logits = 12 * shape.experts  # fp32, three times
    return [
        Kernel("router", tokens, (FORWARD, BACKWARD), reads=4 * hidden + logits),
        # The residual stream in fp32, in and out
        Kernel("sum onto the stream", tokens, (FORWARD,), reads=4 * hidden, writes=4 * hidden),
        Kernel("slots in that sum", pairs, (FORWARD, BACKWARD), reads=2 * hidden),
        # From fp32, for the experts
        Kernel("gradient to fp16", tokens, (BACKWARD,), reads=4 * hidden, writes=2 * hidden),
        # Of the experts' and of the router's input, in fp32
        Kernel("sum of gradients", tokens, (BACKWARD,), reads=8 * hidden, writes=4 * hidden),
    ]


def expert_weights(shape: ModelShape, busy: float) -> list[Kernel]:
    """List the kernels over the weights of `busy` experts; units are weights."""
    down = busy * shape.mlp_width * shape.hidden
    gate_up = 2 * down
    packed = 0.5 + 1 / BLOCK  # a weight and its share of the 8-bit scale
    both = (FORWARD, BACKWARD)
    return [
        Kernel("dequantisation", gate_up + down, both, reads=packed, writes=FP16),
        # The backward recomputes gate and up, and needs the gradient of their input
        Kernel("gate and up's products", gate_up, (FORWARD, BACKWARD, BACKWARD), reads=FP16),
        Kernel("down's products", down, both, reads=FP16),
    ]


def expert_slots(shape: ModelShape, slots: float) -> list[Kernel]:
    """List the kernels over expert slots, padding included.

    The backward recomputes gate and up. A checkpointed layer's recomputation ends before them.
    """
    hidden = shape.hidden
    width = shape.mlp_width
    down = 2 * hidden * width  # operations
    gate_up = 2 * down
    both = (FORWARD, BACKWARD)
    backward = (BACKWARD,)
    return [
        Kernel("gather of tokens", slots, both, reads=2 * hidden, writes=2 * hidden),
        Kernel("gate and up", slots, both, gate_up),
        Kernel("gate times up", slots, (FORWARD,), reads=4 * width, writes=2 * width),
        Kernel("down", slots, (FORWARD,), down),
        Kernel("gather of gradients", slots, backward, reads=2 * hidden, writes=2 * hidden),
        Kernel("gradient through down", slots, backward, down),
        Kernel("gate times up", slots, backward, reads=6 * width, writes=4 * width),
        Kernel("gradient through gate and up", slots, backward, gate_up),
    ]


def dense_mlp(shape: ModelShape, batch: Batch) -> list[Kernel]:
    """List the kernels of a dense MLP beside its matrices: transformers' own; units are tokens."""
    tokens = batch.tokens
    hidden = shape.hidden
    width = shape.mlp_width
    backward = (BACKWARD,)
    return [
        # Several kernels; bytes read and written together
        Kernel("norm", tokens, FORWARDS, reads=14 * hidden),
        Kernel("activation of gate", tokens, FORWARDS, reads=2 * width, writes=2 * width),
        Kernel("gate times up", tokens, FORWARDS, reads=4 * width, writes=2 * width),
        # The backward does not need it. The stream is fp32, the output fp16
        Kernel("sum onto the stream", tokens, (FORWARD,), reads=6 * hidden, writes=4 * hidden),
        # Several kernels; bytes read and written together
        Kernel("norm and sum", tokens, backward, reads=42 * hidden),
        Kernel("gate times up", tokens, backward, reads=8 * width, writes=4 * width),
        Kernel("activation of gate", tokens, backward, reads=4 * width, writes=2 * width),
    ]


def head(shape: ModelShape, batch: Batch) -> list[Kernel]:
    """List the head's product, once forward and once backward; units are its weights."""
    weights = shape.vocabulary * shape.hidden
    operations = 2 * batch.rows * LOGIT_POSITIONS
    return [Kernel("head", weights, (FORWARD, BACKWARD), operations, reads=FP16)]


def vision(shape: ModelShape, batch: Batch) -> list[Kernel]:
    """List the kernels of the vision tower; it has no backward."""
    hidden = shape.vision_hidden
    patches_per_token = shape.pixels_per_token // shape.patch_px**2
    patches_per_image = batch.image_tokens * patches_per_token
    patches = batch.rows * patches_per_image
    forward = (FORWARD,)
    kernels = []
    for name, size in shape.parameters.items():
        if not name.startswith(VISION) or len(size) < 2 or "pos_embed" in name:
            continue
        inputs = patches / patches_per_token if "merger" in name else patches
        kernels.append(Kernel(name, math.prod(size), forward, 2 * inputs, reads=FP16))
    # Bytes read and written together: the two norms, rotation, attention, sums onto the stream
    moved = (18 + 8 + 8 + 10) * hidden
    moved += 4 * shape.vision_mlp_width  # the activation
    scores = 4 * hidden * patches_per_image
    block_patches = vision_blocks(shape) * patches
    kernels.append(Kernel("rest of blocks", block_patches, forward, scores, reads=moved))
    return kernels


def vision_blocks(shape: ModelShape) -> int:
    """Count the blocks of the vision tower."""
    prefix = f"{VISION}.blocks"
    return sum(
        name.startswith(prefix) and name.endswith("attn.qkv.weight") for name in shape.parameters
    )

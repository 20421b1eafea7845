"""List the kernels of each part of the model, with their cost per unit of work.

These are the kernels of the fused decoder layer, the experts and LoRA (`ops`, `model.fast`,
`model.nf4`); `_vision_kernels` has those of the vision tower. Matrix products count their operations
(with the experts' padding) and the bytes of their weights; the bytes of their inputs and outputs are
covered by the measured product rate. All other kernels count the bytes they read and write.

Left out: the optimizer's step, LoRA's own products, the recurrence of linear attention.
"""

import math
from dataclasses import dataclass

from vqa_utils.config import Config
from vqa_utils.nf4_format import BLOCK
from vqa_utils.planning.batches import LOGIT_POSITIONS, Batch
from vqa_utils.planning.memory import FP16, FP32
from vqa_utils.planning.shapes import ModelShape, Shape, is_matrix

FORWARD = "forward"
RECOMPUTATION = "recomputation"  # of a checkpointed layer, before its backward
BACKWARD = "backward"
FORWARDS = (FORWARD, RECOMPUTATION)


@dataclass(frozen=True)
class Kernel:
    """Kernels of one kind: their cost per unit (a token, an expert slot or a weight)."""

    name: str
    units: float
    phases: tuple[str, ...]
    """The phases it runs in; twice if named twice."""
    operations: float = 0
    """Of matrix products, per unit. A multiplication and an addition are two."""
    reads: float = 0
    """Bytes per unit."""
    writes: float = 0
    """Bytes per unit."""


def matrices(on_gpu: dict[str, Shape], config: Config, batch: Batch) -> list[Kernel]:
    """List the decoder layers' matrices without the experts: dequantised, then multiplied.

    Units are weights.
    """
    reads: float = FP16  # by the product
    writes = 0
    if config.quantization == "nf4":  # dequantising reads a weight and its share of the fp32 scale
        reads += 0.5 + FP32 / BLOCK
        writes += FP16
    kernels = []
    for name, size in on_gpu.items():
        is_stack_of_experts = len(size) == 3
        if is_stack_of_experts or not is_matrix(name):
            continue
        phases: tuple[str, ...] = (FORWARD, RECOMPUTATION, BACKWARD)
        if name.endswith("mlp.down_proj.weight"):
            phases = (FORWARD, BACKWARD)  # not recomputed: the backward does not need its output
        operations = 2 * batch.tokens  # per weight
        weights = math.prod(size)
        kernels.append(Kernel(name, weights, phases, operations, reads=reads, writes=writes))
    return kernels


def attention_forward(shape: ModelShape, batch: Batch, *, causal: bool) -> list[Kernel]:
    """List the kernels of a layer's attention half, without its matrices; units are tokens."""
    tokens = batch.tokens
    hidden = shape.hidden
    queries = shape.attention_width
    qkv = queries + 2 * shape.key_value_width
    return [
        Kernel(
            "norm before q, k and v",
            tokens,
            FORWARDS,
            reads=FP32 * hidden,
            writes=FP16 * hidden,
        ),
        # In: q, k and v. Out: q, and k and v repeated for all heads
        Kernel(
            "head norms, rotation, repetition",
            tokens,
            FORWARDS,
            reads=FP16 * qkv,
            writes=3 * FP16 * queries,
        ),
        Kernel(
            "sdpa",
            tokens,
            FORWARDS,
            operations=_sdpa_operations(shape, batch, causal=causal),
            reads=3 * FP16 * queries,
            writes=FP16 * queries,
        ),
        # In: the residual stream in fp32, and o's output. Out: their sum, its norm in fp16, and what
        # that has rounded away
        Kernel(
            "sum and second norm",
            tokens,
            FORWARDS,
            reads=(FP32 + FP16) * hidden,
            writes=(FP32 + 2 * FP16) * hidden,
        ),
    ]


def attention_backward(shape: ModelShape, batch: Batch, *, causal: bool) -> list[Kernel]:
    """List the kernels of the attention half's backward; units are tokens."""
    tokens = batch.tokens
    hidden = shape.hidden
    queries = shape.attention_width
    qkv = queries + 2 * shape.key_value_width
    backward = (BACKWARD,)
    # Five products where the forward has two
    operations = 2.5 * _sdpa_operations(shape, batch, causal=causal)
    return [
        # In, all in fp32: the residual stream, the gradients of the norm and of the sum.
        # Out: in fp32 and fp16
        Kernel(
            "second norm",
            tokens,
            backward,
            reads=3 * FP32 * hidden,
            writes=(FP32 + FP16) * hidden,
        ),
        # Several kernels; bytes read and written together
        Kernel("sdpa", tokens, backward, operations, reads=12 * FP16 * queries),
        # In: the gradients of q, k and v for all heads, and q, k and v themselves
        Kernel("heads", tokens, backward, reads=3 * FP16 * queries + FP16 * qkv, writes=FP16 * qkv),
        # In: the layer's input and the gradient of the residual stream in fp32, the norm's in fp16
        Kernel(
            "first norm",
            tokens,
            backward,
            reads=(2 * FP32 + FP16) * hidden,
            writes=FP32 * hidden,
        ),
    ]


def _sdpa_operations(shape: ModelShape, batch: Batch, *, causal: bool) -> float:
    """Count the operations per token of QK^T and of the weighted sum of V.

    Causal attention sees half of a row's positions on average. With a mask, masked positions are
    computed too.
    """
    seen = batch.tokens / batch.rows  # positions per query
    if causal:
        seen /= 2
    return 2 * 2 * shape.attention_width * seen  # two products of two operations each


def lora(shape: ModelShape, config: Config, batch: Batch) -> list[Kernel]:
    """List LoRA's kernels in training; units are tokens. Scoring adds LoRA into the matrices."""
    inputs = shape.hidden + shape.attention_width  # of q, k and v together, and of o
    qkv = shape.attention_width + 2 * shape.key_value_width
    outputs = qkv + shape.hidden
    every = (FORWARD, RECOMPUTATION, BACKWARD)
    # LoRA's product is added to the matrix's: in and out
    kernels = [Kernel("sum", batch.tokens, every, reads=FP16 * outputs, writes=FP16 * outputs)]
    if config.lora_dropout:
        # Twice in the backward: of the input once more, and of its gradient
        phases = (*every, BACKWARD)
        moved = FP16 * inputs
        kernels.append(Kernel("dropout", batch.tokens, phases, reads=moved, writes=moved))
    return kernels


def routing(shape: ModelShape, batch: Batch) -> list[Kernel]:
    """List the kernels of the router and of the experts' sum.

    Units are tokens, or pairs of a token and one of its experts.
    """
    tokens = batch.tokens
    pairs = shape.experts_per_token * tokens
    wide = FP32 * shape.hidden  # bytes per token
    narrow = FP16 * shape.hidden
    logits = 3 * FP32 * shape.experts  # read or written three times
    forward = (FORWARD,)
    backward = (BACKWARD,)
    both = (FORWARD, BACKWARD)
    return [
        # In two parts of fp16, or in fp32
        Kernel("router", tokens, both, reads=wide + logits),
        # To the slots of its experts, which `expert_slots` counts
        Kernel("tokens", tokens, both, reads=narrow),
        Kernel("gradients", tokens, backward, reads=narrow),
        # The residual stream, in and out
        Kernel("sum onto the residual stream", tokens, forward, reads=wide, writes=wide),
        Kernel("slots in that sum", pairs, both, reads=narrow),
        # For the experts
        Kernel("gradient to fp16", tokens, backward, reads=wide, writes=narrow),
        # Of the experts' and of the router's input
        Kernel("sum of gradients", tokens, backward, reads=2 * wide, writes=wide),
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
    token = FP16 * shape.hidden  # bytes
    gate = FP16 * shape.mlp_width  # bytes of gate, of up or of their product
    down = 2 * shape.hidden * shape.mlp_width  # operations
    gate_up = 2 * down
    forward = (FORWARD,)
    backward = (BACKWARD,)
    both = (FORWARD, BACKWARD)
    return [
        Kernel("tokens", slots, both, writes=token),
        Kernel("gate and up", slots, both, operations=gate_up),
        Kernel("gate times up", slots, forward, reads=2 * gate, writes=gate),
        Kernel("down", slots, forward, operations=down),
        Kernel("gradients", slots, backward, writes=token),
        Kernel("gradient through down", slots, backward, operations=down),
        Kernel("gate times up", slots, backward, reads=3 * gate, writes=2 * gate),
        Kernel("gradient through gate and up", slots, backward, operations=gate_up),
    ]


def dense_mlp(shape: ModelShape, batch: Batch) -> list[Kernel]:
    """List transformers' kernels of a dense MLP, without its matrices; units are tokens."""
    tokens = batch.tokens
    hidden = shape.hidden
    gate = FP16 * shape.mlp_width  # bytes of gate, of its activation or of up
    backward = (BACKWARD,)
    return [
        # Several kernels; bytes read and written together
        Kernel("norm", tokens, FORWARDS, reads=14 * hidden),
        Kernel("activation of gate", tokens, FORWARDS, reads=gate, writes=gate),
        Kernel("gate times up", tokens, FORWARDS, reads=2 * gate, writes=gate),
        # Not recomputed. The residual stream is fp32, the MLP's output fp16
        Kernel(
            "sum onto the residual stream",
            tokens,
            (FORWARD,),
            reads=(FP32 + FP16) * hidden,
            writes=FP32 * hidden,
        ),
        # Several kernels; bytes read and written together
        Kernel("norm and sum", tokens, backward, reads=42 * hidden),
        Kernel("gate times up", tokens, backward, reads=4 * gate, writes=2 * gate),
        Kernel("activation of gate", tokens, backward, reads=2 * gate, writes=gate),
    ]


def fused_mlp(shape: ModelShape, batch: Batch) -> list[Kernel]:
    """List the kernels of a fused layer's MLP, without its matrices; units are tokens."""
    tokens = batch.tokens
    wide = FP32 * shape.hidden  # bytes per token
    narrow = FP16 * shape.hidden
    gate = FP16 * shape.mlp_width  # bytes of gate, of up or of their product
    forward = (FORWARD,)
    backward = (BACKWARD,)
    return [
        Kernel("gate times up", tokens, forward, reads=2 * gate, writes=gate),
        Kernel("sum onto the residual stream", tokens, forward, reads=wide + narrow, writes=wide),
        Kernel("gradient to fp16", tokens, backward, reads=wide, writes=narrow),
        Kernel("gate times up", tokens, backward, reads=3 * gate, writes=2 * gate),
    ]


def head(shape: ModelShape, batch: Batch) -> list[Kernel]:
    """List the head's product, once forward and once backward; units are its weights."""
    weights = shape.vocabulary * shape.hidden
    operations = 2 * batch.rows * LOGIT_POSITIONS
    return [Kernel("head", weights, (FORWARD, BACKWARD), operations, reads=FP16)]

"""Count the work of one pass on a GPU, kernel by kernel: operations, bytes, launches.

Each part of the model is a table of kernels, summed by phase. Kernels are those of the fused
decoder layer, the experts, LoRA and the vision tower (`ops`, `model.fast`, `model.nf4`).

Matrix products count their operations (with the experts' padding) and the bytes of their weights.
The bytes of their inputs and outputs are left to the rate that they reach. All other kernels
count the bytes that they read and write. Left out: the optimizer's step, LoRA's own products, the
recurrence of linear attention, and what two GPUs pass to each other.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vqa_utils.config import Config
from vqa_utils.forecasting._expert_loads import expert_slots
from vqa_utils.nf4_format import BLOCK
from vqa_utils.planning.activations import LOGIT_POSITIONS, Batch
from vqa_utils.planning.memory import FP16, FP32, module_of
from vqa_utils.planning.placement import HEAD, VISION, GpuPlan
from vqa_utils.planning.shapes import ModelShape, Shape, is_matrix

FORWARD = "forward"
RECOMPUTATION = "recomputation"  # of a checkpointed layer, before its backward
BACKWARD = "backward"
FORWARDS = (FORWARD, RECOMPUTATION)

# By phase: how often it is done, or how many kernels it launches
ByPhase = dict[str, float]

# Launches a layer: kernels, copies and memsets, counted from the code
ATTENTION_LAUNCHES: ByPhase = {FORWARD: 18, RECOMPUTATION: 18, BACKWARD: 33}
DENSE_MLP_LAUNCHES: ByPhase = {FORWARD: 17, RECOMPUTATION: 12, BACKWARD: 21}
# Router, routing, and kernels over all slots. A recomputation ends before them.
EXPERTS_LAUNCHES: ByPhase = {FORWARD: 15, BACKWARD: 12}
# A chunk's products, most with a memset in front
CHUNK_LAUNCHES: ByPhase = {FORWARD: 3.6, BACKWARD: 5.4}
# Launches of the rest
HEAD_LAUNCHES: ByPhase = {FORWARD: 20, BACKWARD: 20}
VISION_BLOCK_LAUNCHES = 12
VISION_OTHER_LAUNCHES = 150


@dataclass(frozen=True)
class Pass:
    """One pass through the model."""

    batch: Batch
    training: bool
    """With a backward."""
    causal: bool = True
    """Attention needs no mask. Several option orders in a pass need one."""


@dataclass(frozen=True)
class Kernel:
    """Kernels of one kind: what each unit (a token, an expert slot, a weight) costs them."""

    name: str
    units: float
    phases: tuple[str, ...]
    """The phases that run it; one that is named twice runs it twice."""
    operations: float = 0
    """Of matrix products, for a unit. A multiplication and an addition are two."""
    reads: float = 0
    """Bytes for a unit."""
    writes: float = 0
    """Bytes for a unit."""


@dataclass(frozen=True)
class Work:
    """What a GPU has to do."""

    operations: float = 0
    """Of matrix products."""
    moved: float = 0
    """Bytes read and written in the GPU's memory."""
    copied: float = 0
    """Bytes that come over the bus: offloaded experts."""
    launches: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.operations + other.operations,
            self.moved + other.moved,
            self.copied + other.copied,
            self.launches + other.launches,
        )

    def __mul__(self, times: float) -> "Work":
        return Work(
            self.operations * times,
            self.moved * times,
            self.copied * times,
            self.launches * times,
        )


def work_of(
    gpu: GpuPlan, shape: ModelShape, config: Config, one_pass: Pass, padding_worth: int
) -> Work:
    """Count one pass through the modules on a GPU.

    Args:
        gpu: says which modules are there, and which layers are checkpointed or offloaded.
        shape: the model's.
        config: the settings of the run.
        one_pass: its batch, and if it has a backward.
        padding_worth: as `expert_chunks.split` is told on this GPU.
    """
    batch = one_pass.batch
    times = _times_by_phase(gpu, one_pass)
    on_gpu = {}
    for name, size in shape.parameters.items():
        if module_of(name) in gpu.modules:
            on_gpu[name] = size
    layers = len(gpu.layers)
    with_experts = sum(name.endswith(".experts.gate_up_proj") for name in on_gpu)

    work = _summed(_matrices(on_gpu, config, batch), {}, times)
    work += _summed(_attention(shape, config, one_pass), ATTENTION_LAUNCHES, times) * layers
    if with_experts:
        work += _experts_of_a_layer(shape, batch, padding_worth, times) * with_experts
    dense_mlp = _summed(_dense_mlp(shape, batch), DENSE_MLP_LAUNCHES, times)
    work += dense_mlp * (layers - with_experts)
    work += _copied_experts(gpu, shape, one_pass)
    if VISION in gpu.modules:
        work += _vision(shape, batch)
    if HEAD in gpu.modules:
        work += _summed([_head(shape, batch)], HEAD_LAUNCHES, times)
    return work


def _times_by_phase(gpu: GpuPlan, one_pass: Pass) -> ByPhase:
    """Say how often a layer goes through each phase, in the mean of the GPU's layers."""
    if not one_pass.training:
        return {FORWARD: 1, RECOMPUTATION: 0, BACKWARD: 0}
    uncheckpointed = len(gpu.uncheckpointed_layers) / max(1, len(gpu.layers))
    return {FORWARD: 1, RECOMPUTATION: 1 - uncheckpointed, BACKWARD: 1}


def _summed(kernels: Iterable[Kernel], launches: ByPhase, times: ByPhase) -> Work:
    """Add up kernels as often as their phases are done."""
    operations = 0.0
    moved = 0.0
    for kernel in kernels:
        units = kernel.units * sum(times[phase] for phase in kernel.phases)
        operations += units * kernel.operations
        moved += units * (kernel.reads + kernel.writes)
    launched = sum(count * times[phase] for phase, count in launches.items())
    return Work(operations, moved, launches=launched)


def _matrices(on_gpu: dict[str, Shape], config: Config, batch: Batch) -> list[Kernel]:
    """List the matrices of all decoder layers but the experts: made dense, then multiplied."""
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


def _attention(shape: ModelShape, config: Config, one_pass: Pass) -> list[Kernel]:
    """List the kernels of a layer's attention half beside its matrices: units are tokens."""
    batch = one_pass.batch
    tokens = batch.tokens
    hidden = shape.hidden
    queries = shape.attention_width
    qkv = queries + 2 * shape.key_value_width
    lora_inputs = hidden + queries  # of q, k and v together, and of o
    lora_outputs = qkv + hidden
    # Causal attention sees half of a row's positions; with a mask, hidden ones are computed too
    seen = batch.tokens / batch.rows / (2 if one_pass.causal else 1)
    products = 4 * queries * seen  # scores, and sums over positions

    kernels = [
        Kernel("norm before q, k and v", tokens, FORWARDS, reads=4 * hidden, writes=2 * hidden),
        # q, k and v in; q, and k and v repeated for all heads, out
        Kernel("head norms, rotation, repetition", tokens, FORWARDS, 0, 2 * qkv, 6 * queries),
        Kernel("sdpa", tokens, FORWARDS, products, reads=6 * queries, writes=2 * queries),
        # In: the residual stream in fp32 and o's output; out: their sum, its norm in fp16 and fp32
        Kernel("sum and second norm", tokens, FORWARDS, reads=6 * hidden, writes=10 * hidden),
        # In: the stream in fp32, the norm's gradient in fp32, that of the sum; out: fp32 and fp16
        Kernel("second norm", tokens, (BACKWARD,), reads=12 * hidden, writes=6 * hidden),
        # Five products where the forward has two. Bytes: read and written together
        Kernel("sdpa", tokens, (BACKWARD,), 2.5 * products, reads=24 * queries),
        # The gradients of q, k and v, and q, k and v in
        Kernel("heads", tokens, (BACKWARD,), 0, 6 * queries + 2 * qkv, 2 * qkv),
        # In: the layer's input in fp32, the norm's gradient in fp16, that of the stream; out: fp32
        Kernel("first norm", tokens, (BACKWARD,), reads=10 * hidden, writes=4 * hidden),
    ]
    if one_pass.training:  # scoring adds LoRA into the matrices
        every = (FORWARD, RECOMPUTATION, BACKWARD)
        kernels.append(Kernel("LoRA's sum", tokens, every, 0, 2 * lora_outputs, 2 * lora_outputs))
    if one_pass.training and config.lora_dropout:
        # In the backward: of the input once more, and of its gradient
        phases = (FORWARD, RECOMPUTATION, BACKWARD, BACKWARD)
        kernels.append(
            Kernel("LoRA's dropout", tokens, phases, 0, 2 * lora_inputs, 2 * lora_inputs)
        )
    return kernels


def _experts_of_a_layer(
    shape: ModelShape, batch: Batch, padding_worth: int, times: ByPhase
) -> Work:
    """Count a layer's router and experts."""
    expected = expert_slots(shape.experts, shape.experts_per_token, batch.tokens, padding_worth)
    launches = {
        phase: EXPERTS_LAUNCHES[phase] + expected.chunks * CHUNK_LAUNCHES[phase]
        for phase in EXPERTS_LAUNCHES
    }
    kernels = [
        *_routing(shape, batch),
        *_expert_weights(shape, expected.busy),
        *_expert_slots(shape, expected.slots),
    ]
    return _summed(kernels, launches, times)


def _routing(shape: ModelShape, batch: Batch) -> list[Kernel]:
    """List the kernels over tokens, and over pairs of a token and one of its experts."""
    tokens = batch.tokens
    pairs = shape.experts_per_token * tokens
    hidden = shape.hidden
    logits = 12 * shape.experts  # fp32, three times
    return [
        Kernel("router", tokens, (FORWARD, BACKWARD), reads=4 * hidden + logits),
        # The residual stream in fp32, in and out
        Kernel("sum onto the stream", tokens, (FORWARD,), reads=4 * hidden, writes=4 * hidden),
        Kernel("rows in that sum", pairs, (FORWARD, BACKWARD), reads=2 * hidden),
        # The gradient in fp32, for the experts in fp16
        Kernel("gradient to fp16", tokens, (BACKWARD,), reads=4 * hidden, writes=2 * hidden),
        # The gradients of the experts' and of the router's input, in fp32
        Kernel("sum of gradients", tokens, (BACKWARD,), reads=8 * hidden, writes=4 * hidden),
    ]


def _expert_weights(shape: ModelShape, busy: float) -> list[Kernel]:
    """List the kernels over the weights of experts with tokens."""
    gate_up = busy * 2 * shape.mlp_width * shape.hidden
    down = busy * shape.mlp_width * shape.hidden
    packed = 0.5 + 1 / BLOCK  # a weight and its share of the 8-bit scale
    both = (FORWARD, BACKWARD)
    return [
        Kernel("dequantisation", gate_up + down, both, reads=packed, writes=FP16),
        # The backward recomputes gate and up, and needs the gradient of their input
        Kernel("gate and up's products", gate_up, (FORWARD, BACKWARD, BACKWARD), reads=FP16),
        Kernel("down's products", down, both, reads=FP16),
    ]


def _expert_slots(shape: ModelShape, slots: float) -> list[Kernel]:
    """List the kernels over expert slots, padding included.

    The backward recomputes gate and up; a recomputation of the layer ends before the experts.
    """
    hidden = shape.hidden
    width = shape.mlp_width
    down = 2 * hidden * width  # operations
    gate_up = 2 * down
    both = (FORWARD, BACKWARD)
    return [
        Kernel("gather of tokens", slots, both, reads=2 * hidden, writes=2 * hidden),
        Kernel("gate and up", slots, both, gate_up),
        Kernel("gate times up", slots, (FORWARD,), reads=4 * width, writes=2 * width),
        Kernel("down", slots, (FORWARD,), down),
        Kernel("gather of gradients", slots, (BACKWARD,), reads=2 * hidden, writes=2 * hidden),
        Kernel("gradient through down", slots, (BACKWARD,), down),
        Kernel("gate times up", slots, (BACKWARD,), reads=6 * width, writes=4 * width),
        Kernel("gradient through gate and up", slots, (BACKWARD,), gate_up),
    ]


def _dense_mlp(shape: ModelShape, batch: Batch) -> list[Kernel]:
    """List the kernels of a dense MLP beside its matrices: transformers' own, units are tokens."""
    tokens = batch.tokens
    hidden = shape.hidden
    width = shape.mlp_width
    return [
        # Several kernels; bytes read and written together
        Kernel("norm", tokens, FORWARDS, reads=14 * hidden),
        Kernel("activation of gate", tokens, FORWARDS, reads=2 * width, writes=2 * width),
        Kernel("gate times up", tokens, FORWARDS, reads=4 * width, writes=2 * width),
        # Not recomputed: the backward does not need it. The stream is fp32, the output fp16
        Kernel("sum onto the stream", tokens, (FORWARD,), reads=6 * hidden, writes=4 * hidden),
        # Several kernels; bytes read and written together
        Kernel("norm and sum", tokens, (BACKWARD,), reads=42 * hidden),
        Kernel("gate times up", tokens, (BACKWARD,), reads=8 * width, writes=4 * width),
        Kernel("activation of gate", tokens, (BACKWARD,), reads=4 * width, writes=2 * width),
    ]


def _copied_experts(gpu: GpuPlan, shape: ModelShape, one_pass: Pass) -> Work:
    """Count the bytes of offloaded experts: copied for the forward, and again for the backward."""
    weights = shape.experts * 3 * shape.mlp_width * shape.hidden
    packed = weights // 2 + weights // BLOCK  # 4 bits a weight, an 8-bit scale for each block
    copies = 2 if one_pass.training else 1
    return Work(copied=copies * packed * len(gpu.offloaded_layers))


def _head(shape: ModelShape, batch: Batch) -> Kernel:
    """Describe the head's product, once forward and once backward; units are its weights."""
    weights = shape.vocabulary * shape.hidden
    logits = batch.rows * LOGIT_POSITIONS
    return Kernel("head", weights, (FORWARD, BACKWARD), operations=2 * logits, reads=FP16)


def _vision(shape: ModelShape, batch: Batch) -> Work:
    """Count the vision tower, which has no backward."""
    hidden = shape.vision_hidden
    patches_per_token = shape.pixels_per_token // shape.patch_px**2
    patches_per_image = batch.image_tokens * patches_per_token
    patches = batch.rows * patches_per_image
    kernels = []
    for name, size in shape.parameters.items():
        if not name.startswith(VISION) or len(size) < 2 or "pos_embed" in name:
            continue
        inputs = patches / patches_per_token if "merger" in name else patches
        kernels.append(Kernel(name, math.prod(size), (FORWARD,), operations=2 * inputs, reads=FP16))
    blocks = _vision_blocks(shape)
    # Bytes read and written: the two norms 18, rotation 8, attention 8, sums onto the stream 10
    moved = (18 + 8 + 8 + 10) * hidden + 4 * shape.vision_mlp_width  # and the activation
    scores = 4 * hidden * patches_per_image
    kernels.append(Kernel("rest of blocks", blocks * patches, (FORWARD,), scores, reads=moved))
    launches: ByPhase = {FORWARD: blocks * VISION_BLOCK_LAUNCHES + VISION_OTHER_LAUNCHES}
    return _summed(kernels, launches, {FORWARD: 1})


def _vision_blocks(shape: ModelShape) -> int:
    """Count the blocks of the vision tower."""
    prefix = f"{VISION}.blocks"
    return sum(
        name.startswith(prefix) and name.endswith("attn.qkv.weight") for name in shape.parameters
    )

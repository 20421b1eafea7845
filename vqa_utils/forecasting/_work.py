"""What one pass asks of a GPU and of its host: operations, bytes, kernels. Counted from shapes; free of torch.

Counted for the code in `layer`, `experts`, `lora`, `attention`, `norms` and `vision`, kernel by kernel. Matrix products give
their operations (with the experts' padding) and the bytes of their weights; what else they read and write is left to the
rate that they reach. All other kernels give the bytes that they read and write. Left out: the optimizer's step, LoRA's own
products, the recurrence of linear attention, and what two GPUs pass to each other.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from vqa_utils.config import Config
from vqa_utils.forecasting._expert_loads import expert_rows
from vqa_utils.nf4_format import BLOCK
from vqa_utils.planning.memory import KEPT_POSITIONS, Batch, module_of
from vqa_utils.planning.placement import HEAD, VISION, GpuPlan
from vqa_utils.planning.shapes import LAYERS, ModelShape, Shape, is_matrix

# Kernels, copies and memsets among them: forward, made again in the backward, and backward
ATTENTION_LAUNCHES = (18, 18, 33)  # with its norm, LoRA and the residual stream
ROUTED_LAUNCHES = (
    15,
    0,
    12,
)  # router, routing, and what is done to a group's or all rows; the second time ends before
CHUNK_LAUNCHES = (3.6, 0, 5.4)  # products, most with a memset in front
DENSE_LAUNCHES = (17, 12, 21)
BLOCK_LAUNCHES, TOWER_LAUNCHES = 12, 150  # of the vision tower
HEAD_LAUNCHES = (20, 0, 20)
Thrice = tuple[float, float, float]


@dataclass(frozen=True)
class Work:
    """What a GPU has to do."""

    operations: float = 0
    """Of matrix products; a multiplication and an addition are two."""
    moved: float = 0
    """Bytes read and written in the GPU's memory."""
    streamed: float = 0
    """Bytes that come over the bus."""
    launches: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.operations + other.operations,
            self.moved + other.moved,
            self.streamed + other.streamed,
            self.launches + other.launches,
        )

    def __mul__(self, times: float) -> "Work":
        return Work(
            self.operations * times,
            self.moved * times,
            self.streamed * times,
            self.launches * times,
        )


def work_of(
    gpu: GpuPlan,
    shape: ModelShape,
    config: Config,
    batch: Batch,
    padding_worth: int,
    *,
    training: bool,
    causal: bool = True,
) -> Work:
    """One pass through the modules on a GPU: forward, or with its backward where it is `training`.

    Args:
        padding_worth: what `chunks.split` is told on this GPU.
        causal: whether attention needs no mask, as it does for several option orders.
    """
    layers = [module for module in gpu.modules if module.startswith(LAYERS)]
    again = 1 - len(gpu.uncheckpointed_layers) / max(
        1, len(layers)
    )  # the share of the layers that are computed again
    times = (1, again, 1) if training else (1, 0, 0)
    on_gpu = {
        name: size for name, size in shape.parameters.items() if module_of(name) in gpu.modules
    }
    parts = [
        _matrix(name, size, config, batch, times)
        for name, size in on_gpu.items()
        if is_matrix(name, size)
    ]
    routed = sum(name.endswith(".experts.gate_up_proj") for name in on_gpu)
    parts += [_attention(shape, config, batch, times, training=training, causal=causal)] * len(
        layers
    )
    parts += [_routed(shape, batch, times, padding_worth)] * routed
    parts += [_dense(shape, batch, times)] * (len(layers) - routed)
    if gpu.offloaded_layers:
        an_expert = 3 * shape.mlp_width * shape.hidden
        packed = shape.experts * an_expert // 2 + shape.experts * an_expert // BLOCK
        parts.append(Work(streamed=(1 + training) * packed * len(gpu.offloaded_layers)))
    if VISION in gpu.modules:
        parts += _vision(shape, batch)
    if HEAD in gpu.modules:
        weights = shape.vocabulary * shape.hidden
        once = Work(
            2 * weights * batch.rows * KEPT_POSITIONS, 2 * weights, launches=HEAD_LAUNCHES[0]
        )
        parts += [once] * (1 + training)
    return functools.reduce(Work.__add__, parts, Work())


def _summed(times: Thrice, each: Thrice) -> float:
    return sum(count * size for count, size in zip(times, each, strict=True))


def _matrix(name: str, size: Shape, config: Config, batch: Batch, times: Thrice) -> Work:
    """A matrix of a decoder layer: made dense and multiplied forward, again under checkpointing, and backward."""
    if len(size) == 3:  # experts, which `_routed` counts
        return Work()
    again = 0 if name.endswith("mlp.down_proj.weight") else 1  # nothing behind it needs its output
    count = math.prod(size) * _summed(times, (1, again, 1))
    return Work(2 * count * batch.tokens, _dense_bytes(config) * count)


def _dense_bytes(config: Config) -> float:
    """Bytes a weight that is multiplied once: packed and its scale read, 16 bits written, and read by the product."""
    return 0.5 + 4 / BLOCK + 2 + 2 if config.quantization == "nf4" else 2


def _attention(
    shape: ModelShape, config: Config, batch: Batch, times: Thrice, *, training: bool, causal: bool
) -> Work:
    """Scores and sums over positions, and the element-wise work of a layer's attention half."""
    hidden, queries, keys = shape.hidden, shape.attention_width, shape.key_value_width
    norms = (
        6 * hidden + 16 * hidden
    )  # fp32 in, fp16 out; with the attention's output, and the stream and the norm in fp32
    dropout = 4 * (hidden + queries) if training and config.lora_dropout else 0  # in and out
    update = (
        4 * (queries + 2 * keys + hidden) if training else 0
    )  # LoRA's is added to what is there, or to the matrix
    heads = 2 * (queries + 2 * keys) + 6 * queries  # q, k and v; k and v repeated
    forward = norms + dropout + update + heads + 8 * queries  # at last the attention's own
    # both norms' with the stream's; what the forward dropped; sdpa's own in and out; heads; LoRA's
    backward = (
        32 * hidden + 2 * dropout + 24 * queries + 6 * queries + 4 * (queries + 2 * keys) + update
    )
    seen = batch.tokens / batch.rows / (2 if causal else 1)  # what a mask hides is computed too
    products = 4 * queries * seen  # the backward has five where the forward has two
    return Work(
        operations=batch.tokens * _summed(times, (products, products, 2.5 * products)),
        moved=batch.tokens * _summed(times, (forward, forward, backward)),
        launches=_summed(times, ATTENTION_LAUNCHES),
    )


def _routed(shape: ModelShape, batch: Batch, times: Thrice, padding_worth: int) -> Work:
    """A layer's router and experts. The forward multiplies once; the backward makes gates and values again."""
    hidden, width, pairs = shape.hidden, shape.mlp_width, shape.experts_per_token * batch.tokens
    slots, busy, chunks = expert_rows(
        shape.experts, shape.experts_per_token, batch.tokens, padding_worth
    )
    an_expert = 3 * hidden * width
    dense = 0.5 + 1 / BLOCK + 2  # bytes a weight: packed and its scale read, 16 bits written
    weights = (
        dense + 2,
        0,
        dense + 2 * 5 / 3,
    )  # read once forward; backward gate_up twice and down once
    # the router reads fp32, and its logits; the gathered rows' tokens; the sum onto the stream, or of gradients with the router's
    a_token = (
        4 * hidden + 12 * shape.experts + 8 * hidden,
        0,
        6 * hidden + 4 * hidden + 12 * shape.experts + 12 * hidden,
    )
    a_slot = (
        4 * hidden + 6 * width,
        0,
        8 * hidden + 10 * width,
    )  # rows found; gates; their backward
    added = (2 * hidden, 0, 2 * hidden)  # a pair's row, in the sum over a token's experts
    return Work(
        operations=2 * slots * an_expert * _summed(times, (1, 0, 5 / 3)),
        moved=busy * an_expert * _summed(times, weights)
        + batch.tokens * _summed(times, a_token)
        + slots * _summed(times, a_slot)
        + pairs * _summed(times, added),
        launches=_summed(times, ROUTED_LAUNCHES) + chunks * _summed(times, CHUNK_LAUNCHES),
    )


def _dense(shape: ModelShape, batch: Batch, times: Thrice) -> Work:
    """The element-wise work of a dense MLP: its norm, the gate, the residual stream."""
    hidden, width = shape.hidden, shape.mlp_width
    bytes_a_token = (24 * hidden + 10 * width, 14 * hidden + 10 * width, 42 * hidden + 18 * width)
    return Work(
        moved=batch.tokens * _summed(times, bytes_a_token), launches=_summed(times, DENSE_LAUNCHES)
    )


def _vision(shape: ModelShape, batch: Batch) -> Iterator[Work]:
    """The vision tower, which goes forward alone."""
    hidden = shape.vision_hidden
    merged = shape.pixels_per_token // shape.patch_px**2  # patches an image token
    patches = batch.rows * batch.image_tokens * merged
    for name, size in shape.parameters.items():
        if name.startswith(VISION) and len(size) > 1 and "pos_embed" not in name:
            rows = patches / merged if "merger" in name else patches
            yield Work(2 * math.prod(size) * rows, 2 * math.prod(size))
    blocks = sum(
        name.startswith(f"{VISION}.blocks") and name.endswith("attn.qkv.weight")
        for name in shape.parameters
    )
    scores = 4 * hidden * batch.image_tokens * merged
    bytes_a_patch = (
        18 + 8 + 8 + 10
    ) * hidden + 4 * shape.vision_mlp_width  # norms, rotary, attention, stream; activation
    yield Work(
        blocks * patches * scores,
        blocks * patches * bytes_a_patch,
        launches=blocks * BLOCK_LAUNCHES + TOWER_LAUNCHES,
    )

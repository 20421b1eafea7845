"""Count the bytes of a model's weights on a GPU: packed in NF4, and LoRA with its optimizer.

`activations` counts the rest. Both count from shapes, tensor by tensor, and were checked on
measured peaks: tests/bench/README.md.
"""

import functools
import math
from dataclasses import replace

from vqa_utils.config import Config
from vqa_utils.nf4_format import BLOCK, GROUP
from vqa_utils.planning.shapes import LAYERS, VISION, ModelShape, Shape, group_of, is_matrix

# Bytes of an element
FP32 = 4
FP16 = 2

DENSE_AT_ONCE = 2**25  # weights of a fused MLP's matrix, 64 MiB
MOST_CHUNKS = 64
# Experts whose dense 16-bit weights are in memory at a time: 576 of the 30B's 1,152 MiB per layer
EXPERTS_AT_ONCE = 64
# The same where folds in turns lack the memory: more launches, and less than giving memory back
FEWER_EXPERTS_AT_ONCE = (32, 16)

# Bytes of a LoRA weight: itself in fp32, its gradient, AdamW's two moments, autocast's fp16 copy
LORA_BYTES = FP32 + FP32 + 2 * FP32 + FP16
# The same with the moments in host memory
PAGED_LORA_BYTES = FP32 + FP32 + FP16

# Names of groups of weights: LoRA's own, and one of `shapes.GROUPS`
LORA = "LoRA and its optimizer"
EXPERTS = "experts"
NORMS = "norms and router"
ROUTER = ".mlp.gate.weight"  # a weight's name ends with it

# Bytes by name: of a group of weights, of a kind of activations, or of a phase
Bytes = dict[str, int]


def weight_bytes(name: str, shape: Shape, config: Config, element_bytes: int = 0) -> int:
    """Count a parameter's bytes as `load_base` keeps it: NF4, fp32 (norms and router), or 16 bits.

    Args:
        name: the parameter's name in transformers' model.
        shape: its dimensions before packing.
        config: says how matrices are packed.
        element_bytes: of an unpacked element; by default two, and four without `use_amp`.
    """
    count = math.prod(shape)
    if config.quantization == "nf4" and is_matrix(name):
        # Each expert of a stack [E, out, in] is packed as a tensor of its own
        tensors = shape[0] if len(shape) == 3 else 1
        return tensors * nf4_bytes(count // tensors, config.use_double_quant)
    if group_of(name) == NORMS:
        return count * FP32
    if not element_bytes:
        element_bytes = FP16 if config.use_amp else FP32
    return count * element_bytes


def nf4_bytes(count: int, double_quant: bool) -> int:
    """Count the bytes of `count` packed weights with their scales.

    They are 4.127 bits per weight with double quantisation, 4.5 without.

        64 weights x 4 bits | one scale: 8 bits, or 32 without double quantisation
        256 scales          | one scale of theirs: 32 bits; and one 32-bit offset for all
    """
    packed = math.ceil(count / 2)  # bytes, of two weights each
    blocks = math.ceil(count / BLOCK)  # each with a scale
    if not double_quant:
        return packed + FP32 * blocks
    scales_of_scales = math.ceil(blocks / GROUP)
    offset = FP32
    return packed + blocks + FP32 * scales_of_scales + offset


def chunks_of_rows(rows: int, columns: int) -> int:
    """Count the chunks in which a packed matrix of a fused MLP is made dense, a few rows at a time.

    Each has whole groups of scales, or there is one.
    """
    for count in range(1, MOST_CHUNKS + 1):
        weights = rows // count * columns
        has_whole_groups = rows % count == 0 and weights % (BLOCK * GROUP) == 0
        if has_whole_groups and weights <= DENSE_AT_ONCE:
            return count
    return 1


def module_of(name: str) -> str:
    """Find the module of a parameter, as the device map places it."""
    if name.startswith(f"{LAYERS}."):
        return ".".join(name.split(".")[:4])  # model.language_model.layers.<number>
    if name.startswith(VISION):
        return VISION
    return name.rpartition(".")[0]


def weights_by_module(shape: ModelShape, config: Config) -> dict[str, Bytes]:
    """Count each placed module's weights by group, LoRA with its optimizer as one group more.

    The result is kept for settings that differ in their batches alone, as a search for the largest
    ones asks for it again and again; do not change it.
    """
    alike = replace(config, micro_batch=1, accumulation=1, score_batch=1, folds_at_once=1)
    return _weights_by_module(shape, alike)


@functools.lru_cache(maxsize=64)
def _weights_by_module(shape: ModelShape, config: Config) -> dict[str, Bytes]:
    modules: dict[str, Bytes] = {}
    for name, size in shape.parameters.items():
        groups = modules.setdefault(module_of(name), {})
        _add(groups, group_of(name), weight_bytes(name, size, config))
        lora_count = lora_weights(name, size, config)
        if lora_count:
            _add(groups, LORA, _lora_bytes(lora_count, size, config))
        if name.endswith(ROUTER):  # it is there in two fp16 parts too: ops/router_logits.py
            _add(groups, group_of(name), 2 * FP16 * math.prod(size))
    return modules


def lora_weights(name: str, shape: Shape, config: Config) -> int:
    """Count the LoRA weights beside a matrix: r * (in + out) of a target module, else 0."""
    endings = tuple(f".{target}.weight" for target in config.target_modules)
    # The vision tower may have projections of the same names, and gets no LoRA
    is_target = name.startswith(LAYERS) and name.endswith(endings)
    # A is [r, in], B is [out, r]
    return config.lora_r * sum(shape) if is_target else 0


def _lora_bytes(lora_count: int, shape: Shape, config: Config) -> int:
    """Count the bytes of so many LoRA weights beside a matrix of this shape."""
    own = lora_count * (PAGED_LORA_BYTES if config.use_cpu_offload else LORA_BYTES)
    if config.quantization == "nf4" and config.use_double_quant:
        # The matrix's scales stay unpacked: 32 bits each in place of 8
        return own + 3 * math.prod(shape) // BLOCK
    return own


def _add(sizes: Bytes, name: str, size: int) -> None:
    sizes[name] = sizes.get(name, 0) + size

"""Count the work of one pass on a GPU: the kernels of its modules, summed by phase.

Copies of activations between GPUs are left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vqa_utils.config import Config
from vqa_utils.forecasting import _kernels as kernels_of
from vqa_utils.forecasting._expert_loads import expected_slots
from vqa_utils.forecasting._kernels import BACKWARD, FORWARD, RECOMPUTATION, Kernel
from vqa_utils.forecasting._vision_kernels import vision, vision_blocks
from vqa_utils.nf4_format import BLOCK
from vqa_utils.planning.batches import Batch
from vqa_utils.planning.gpu_plan import GpuPlan
from vqa_utils.planning.memory import module_of
from vqa_utils.planning.placement import HEAD
from vqa_utils.planning.shapes import VISION, ModelShape

# By phase: how often a layer runs it, or how many kernels it launches
ByPhase = Mapping[str, float]

FORWARD_ONLY: ByPhase = {FORWARD: 1, RECOMPUTATION: 0, BACKWARD: 0}
# Launches per layer: kernels, copies and memsets, counted from the code
ATTENTION_LAUNCHES: ByPhase = {FORWARD: 18, RECOMPUTATION: 18, BACKWARD: 33}
DENSE_MLP_LAUNCHES: ByPhase = {FORWARD: 17, RECOMPUTATION: 12, BACKWARD: 21}
FUSED_MLP_LAUNCHES: ByPhase = {FORWARD: 10, RECOMPUTATION: 4, BACKWARD: 10}
# Router, routing, and kernels over all slots. A recomputation ends before them.
EXPERTS_LAUNCHES: ByPhase = {FORWARD: 16, BACKWARD: 12}
# Per chunk: its products, most with a memset before them
CHUNK_LAUNCHES: ByPhase = {FORWARD: 3.6, BACKWARD: 5.4}
# Launches of the rest
HEAD_LAUNCHES: ByPhase = {FORWARD: 20, BACKWARD: 20}
VISION_BLOCK_LAUNCHES = 11
OTHER_VISION_LAUNCHES = 150


@dataclass(frozen=True)
class Pass:
    """One pass through the model."""

    batch: Batch
    training: bool
    """True with a backward."""
    causal: bool = True
    """True if attention needs no mask; several option orders in one pass need one."""


@dataclass(frozen=True)
class Work:
    """Work on a GPU."""

    operations: float = 0
    """Of matrix products."""
    moved: float = 0
    """Bytes read and written in the GPU's memory."""
    copied: float = 0
    """Bytes over the bus: offloaded experts."""
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
        gpu: its modules, and its checkpointed and offloaded layers.
        shape: the model's.
        config: the settings of the run.
        one_pass: its batch, and if it has a backward.
        padding_worth: for `expert_chunks.split`, on this GPU.
    """
    batch = one_pass.batch
    phase_counts = _phase_counts(gpu, one_pass)
    on_gpu = {}
    for name, size in shape.parameters.items():
        if module_of(name) in gpu.modules:
            on_gpu[name] = size
    layers = len(gpu.layers)
    with_experts = sum(name.endswith(".experts.gate_up_proj") for name in on_gpu)

    # Launches of the matrices are among those of attention and MLP
    work = _summed(kernels_of.matrices(on_gpu, config, batch), {}, phase_counts)
    work += _attention(shape, config, one_pass, phase_counts) * layers
    if with_experts:
        at_once = gpu.experts_at_once
        work += _experts(shape, batch, padding_worth, phase_counts, at_once) * with_experts
    work += _dense_mlp(shape, config, batch, phase_counts) * (layers - with_experts)
    work += _copied_experts(gpu, shape, one_pass)
    if VISION in gpu.modules and not batch.has_features:
        work += vision_work(shape, batch, phase_counts)
    if HEAD in gpu.modules:
        work += _summed(kernels_of.head(shape, batch), HEAD_LAUNCHES, phase_counts)
    return work


def _phase_counts(gpu: GpuPlan, one_pass: Pass) -> ByPhase:
    """Count how often a layer runs each phase, on average over the GPU's layers."""
    if not one_pass.training:
        return FORWARD_ONLY
    uncheckpointed = len(gpu.uncheckpointed_layers) / max(1, len(gpu.layers))
    return {FORWARD: 1, RECOMPUTATION: 1 - uncheckpointed, BACKWARD: 1}


def _summed(kernels: Iterable[Kernel], launches: ByPhase, phase_counts: ByPhase) -> Work:
    """Sum kernels and launches, each as often as its phases run."""
    operations = 0.0
    moved = 0.0
    for kernel in kernels:
        units = kernel.units * sum(phase_counts[phase] for phase in kernel.phases)
        operations += units * kernel.operations
        moved += units * (kernel.reads + kernel.writes)
    launched = sum(count * phase_counts[phase] for phase, count in launches.items())
    return Work(operations, moved, launches=launched)


def _attention(shape: ModelShape, config: Config, one_pass: Pass, phase_counts: ByPhase) -> Work:
    """Count the attention half of a layer, without its matrices."""
    batch = one_pass.batch
    kernels = kernels_of.attention_forward(shape, batch, causal=one_pass.causal)
    if one_pass.training:
        kernels += kernels_of.attention_backward(shape, batch, causal=one_pass.causal)
        kernels += kernels_of.lora(shape, config, batch)
    return _summed(kernels, ATTENTION_LAUNCHES, phase_counts)


def _dense_mlp(shape: ModelShape, config: Config, batch: Batch, phase_counts: ByPhase) -> Work:
    """Count the MLP of a layer without experts, without its matrices."""
    if shape.is_fused(config):
        return _summed(kernels_of.fused_mlp(shape, batch), FUSED_MLP_LAUNCHES, phase_counts)
    return _summed(kernels_of.dense_mlp(shape, batch), DENSE_MLP_LAUNCHES, phase_counts)


def _experts(
    shape: ModelShape, batch: Batch, padding_worth: int, phase_counts: ByPhase, at_once: int
) -> Work:
    """Count the router and the experts of a layer."""
    expected = expected_slots(
        shape.experts, shape.experts_per_token, batch.tokens, padding_worth, at_once
    )
    kernels = [
        *kernels_of.routing(shape, batch),
        *kernels_of.expert_weights(shape, expected.busy),
        *kernels_of.expert_slots(shape, expected.slots),
    ]
    chunks = _summed([], CHUNK_LAUNCHES, phase_counts) * expected.chunks
    return _summed(kernels, EXPERTS_LAUNCHES, phase_counts) + chunks


def _copied_experts(gpu: GpuPlan, shape: ModelShape, one_pass: Pass) -> Work:
    """Count the bytes of offloaded experts: copied for the forward, and again for the backward."""
    # 3: gate, up and down
    weights = shape.experts * 3 * shape.mlp_width * shape.hidden  # of a layer
    packed = weights // 2 + weights // BLOCK  # 4 bits per weight, an 8-bit scale per block
    copies = 2 if one_pass.training else 1
    return Work(copied=copies * packed * len(gpu.offloaded_layers))


def vision_work(shape: ModelShape, batch: Batch, phase_counts: ByPhase = FORWARD_ONLY) -> Work:
    """Count the vision tower's forward for a batch."""
    block_launches = VISION_BLOCK_LAUNCHES * vision_blocks(shape)
    launches = {FORWARD: block_launches + OTHER_VISION_LAUNCHES}
    return _summed(vision(shape, batch), launches, phase_counts)

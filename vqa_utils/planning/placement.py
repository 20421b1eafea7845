"""What a GPU's share of a model takes, and how the decoder layers are spread over GPUs. Free of torch."""

import bisect
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vqa_utils.config import Config
from vqa_utils.planning import memory
from vqa_utils.planning.memory import Bytes
from vqa_utils.planning.shapes import LAYERS, ModelShape

EMBEDDINGS, ROTARY, NORM = (
    f"model.language_model.{part}" for part in ("embed_tokens", "rotary_emb", "norm")
)
VISION, HEAD = "model.visual", "lm_head"
RESERVE = 0.05  # of a GPU's limit stays free where the plan chooses how much to put there: what the allocator cannot reuse
OFFLOAD_SLOTS = (
    2  # layers whose streamed experts lie on a GPU at a time: the one at work, and the next
)


@dataclass(frozen=True)
class GpuPlan:
    """One GPU's share; sizes in bytes."""

    limit: int
    modules: tuple[str, ...]
    weights: Bytes
    """By group; LoRA with its gradients and optimizer among them."""
    training: Bytes
    """What lives beside the weights at the peak of a training step."""
    others: Bytes
    """Peaks of the other phases, weights included: loading, vision, scoring."""
    offloaded_layers: tuple[str, ...] = ()
    """Decoder layers whose experts wait in host memory."""
    uncheckpointed_layers: tuple[str, ...] = ()
    """Decoder layers that the backward does not compute again."""

    @property
    def peaks(self) -> Bytes:
        """The most that each phase holds."""
        return {"training": sum(self.weights.values()) + sum(self.training.values()), **self.others}

    @property
    def total(self) -> int:
        return max(self.peaks.values())

    @property
    def left(self) -> int:
        return self.limit - self.total


class Placement:
    """What the parts of a model take in one run: its modules' weights, and what is alive while they compute."""

    def __init__(self, config: Config, shape: ModelShape, text_tokens: int):
        self.config, self.shape = config, shape
        self.training = memory.batch_of(
            shape, config, config.micro_batch, text_tokens, training=True
        )
        self.scoring = memory.batch_of(
            shape, config, config.score_batch, text_tokens + (config.tta - 1) * memory.OPTION_TOKENS
        )
        self.modules = memory.weights_by_module(shape, config)
        self.layers = [f"{LAYERS}.{number}" for number in range(shape.layers)]
        tied = [] if HEAD in self.modules else [HEAD]
        self.first = [VISION, EMBEDDINGS, ROTARY, *tied]
        self.last = [NORM, *([] if tied else [HEAD])]

    def whole(self, modules: Sequence[str], limit: int) -> GpuPlan:
        """The plan of a GPU with these modules, none of them streamed."""
        weights: Bytes = {}
        for module in modules:
            for group, size in self.modules.get(module, {}).items():
                weights[group] = weights.get(group, 0) + size
        return self.planned(modules, limit, weights, ())

    def offloading(self, modules: Sequence[str], limit: int, reserve: float = 0) -> GpuPlan:
        """The plan of a GPU with these modules; where less than the reserve would be left, as many experts streamed as that takes."""
        gpu = self.whole(modules, limit)
        layers = [module for module in modules if memory.EXPERTS in self.modules.get(module, {})]
        if gpu.left >= reserve * limit or not layers:
            return gpu
        a_layer = gpu.weights[memory.EXPERTS] // len(layers)
        count = min(len(layers), math.ceil((RESERVE * limit - gpu.left) / a_layer) + OFFLOAD_SLOTS)
        on_gpu = {
            **gpu.weights,
            memory.EXPERTS: gpu.weights[memory.EXPERTS] - (count - OFFLOAD_SLOTS) * a_layer,
        }
        # Spread evenly, so that a copy has the layers between two streamed ones to hide behind
        return self.planned(
            modules,
            limit,
            on_gpu,
            tuple(layers[number * len(layers) // count] for number in range(count)),
        )

    def again(self, gpu: GpuPlan) -> GpuPlan:
        """What the same modules take in this run."""
        return self.planned(
            gpu.modules, gpu.limit, gpu.weights, gpu.offloaded_layers, gpu.uncheckpointed_layers
        )

    def planned(
        self,
        modules: Sequence[str],
        limit: int,
        weights: Bytes,
        streamed: tuple[str, ...],
        kept: tuple[str, ...] = (),
    ) -> GpuPlan:
        layers = [module for module in modules if module.startswith(LAYERS)]
        if self.config.use_gradient_checkpointing is False:
            kept = tuple(layers)
        training = memory.training_bytes(
            self.shape, self.config, self.training, len(layers), len(kept), head=NORM in modules
        )
        held, frozen = sum(weights.values()), sum(weights.values()) - weights.get(memory.LORA, 0)
        others = {
            "loading": frozen
            - weights.get("vision", 0)
            + memory.loading_bytes(self.shape) * bool(layers),  # the tower is last
            "scoring": held
            + memory.scoring_bytes(self.shape, self.scoring, first=VISION in modules)
            * bool(layers),
        }
        if VISION in modules:
            others["vision tower"] = held + max(
                memory.vision_bytes(self.shape, batch) for batch in (self.training, self.scoring)
            )
        return GpuPlan(limit, tuple(modules), weights, training, others, streamed, kept)


Placed = Callable[[Sequence[str], int], GpuPlan]  # the plan of a GPU with such modules and limit


def spread_evenly(placed: Placed, placement: Placement, limits: Sequence[int]) -> list[GpuPlan]:
    """The spread that leaves most on the GPU with the least, or where it lacks least; [] without a GPU.

    Args:
        placed: `Placement.whole` or `Placement.offloading`.
        limits: what each GPU may hold, in bytes.
    """

    def leaving(left: int) -> list[GpuPlan] | None:
        return _spread(placed, lambda gpu: gpu.left >= left, placement, limits)

    low, high = (
        -10 * sum(sum(groups.values()) for groups in placement.modules.values()),
        max(limits, default=0),
    )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if leaving(middle) else (low, middle)
    return leaving(low) or []


def spread_offloaded(placement: Placement, limits: Sequence[int]) -> list[GpuPlan]:
    """The spread in which the GPU that streams most streams the fewest layers; [] where nothing fits.

    One that leaves the reserve on each GPU is taken first, even if another streams fewer.
    """

    def offloading(most: int, reserve: float) -> list[GpuPlan] | None:
        def is_good(gpu: GpuPlan) -> bool:
            return gpu.left >= reserve * gpu.limit and len(gpu.offloaded_layers) <= most

        return _spread(
            functools.partial(placement.offloading, reserve=reserve), is_good, placement, limits
        )

    counts = range(len(placement.layers) + 1)
    for reserve in (RESERVE, 0):
        fewest = bisect.bisect_left(
            counts, True, key=lambda most, reserve=reserve: offloading(most, reserve) is not None
        )
        if found := offloading(fewest, reserve):
            return found
    return []


def _spread(
    placed: Placed, is_good: Callable[[GpuPlan], bool], placement: Placement, limits: Sequence[int]
) -> list[GpuPlan] | None:
    """Each GPU in turn gets as many layers as is good; None where some stay over."""
    gpus, waiting = [], list(placement.layers)
    for number, limit in enumerate(limits):
        fixed = [
            *(placement.first if number == 0 else []),
            *(placement.last if number == len(limits) - 1 else []),
        ]
        counts = range(placement.shape.deepstack_layers if number == 0 else 0, len(waiting) + 1)
        fitting = [count for count in counts if is_good(placed([*fixed, *waiting[:count]], limit))]
        if not fitting:
            return None
        gpus.append(placed([*fixed, *waiting[: fitting[-1]]], limit))
        waiting = waiting[fitting[-1] :]
    return None if waiting else gpus

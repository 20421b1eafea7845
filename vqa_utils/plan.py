"""The memory plan: which module lies on which GPU and what that takes, before anything is loaded. Free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vqa_utils import memory
from vqa_utils.config import Config
from vqa_utils.memory import Bytes
from vqa_utils.shapes import LAYERS, ModelShape

EMBEDDINGS, ROTARY, NORM = (f"model.language_model.{part}" for part in ("embed_tokens", "rotary_emb", "norm"))
VISION, HEAD = "model.visual", "lm_head"
STREAM_SLOTS = 2  # layers whose streamed experts lie on a GPU at a time: the one at work, and the next


@dataclass(frozen=True)
class GpuPlan:
    """One GPU's share; sizes in bytes."""

    limit: int
    modules: tuple[str, ...]
    use: Bytes
    """What takes how much at the peak of a run."""
    streamed_layers: int = 0
    """Decoder layers whose experts wait in host memory."""

    @property
    def total(self) -> int:
        return sum(self.use.values())

    @property
    def left(self) -> int:
        return self.limit - self.total


@dataclass(frozen=True)
class Plan:
    """Where a model goes, and whether it fits."""

    gpus: tuple[GpuPlan, ...]

    @property
    def fits(self) -> bool:
        return all(gpu.left >= 0 for gpu in self.gpus)

    @property
    def device_map(self) -> dict[str, int]:
        """Transformers' `device_map`: each module's GPU."""
        return {module: number for number, gpu in enumerate(self.gpus) for module in gpu.modules}


def make_plan(config: Config, shape: ModelShape, limits: Sequence[int], text_tokens: int = memory.TEXT_TOKENS) -> Plan:
    """Spread the decoder layers so that what is left free on each GPU is equal, within a layer.

    The vision tower and the embeddings are on the first GPU (a tied head too), with the first layers, since DeepStack adds
    features of the tower to them; the last norm and the head are on the last.

    Args:
        limits: what each GPU may hold, in bytes.
        text_tokens: of a row, beside those of its image.
    """
    work = _Work(config, shape, text_tokens)
    low, high = -sum(sum(groups.values()) for groups in work.modules.values()), max(limits)
    while high - low > 1:  # the largest amount that can be left free on every GPU
        middle = (low + high) // 2
        low, high = (middle, high) if _spread(work, limits, middle) else (low, middle)
    shares = _spread(work, limits, low)
    return Plan(tuple(_gpu_plan(work, limit, share) for limit, share in zip(limits, shares, strict=True)))


def largest_micro_batch(config: Config, shape: ModelShape, limits: Sequence[int]) -> int:
    """The largest divisor of the effective batch that fits as a micro-batch; 0 where not even one row does."""
    effective = config.micro_batch * config.accumulation
    for rows in range(effective, 0, -1):
        if effective % rows == 0:
            smaller = replace(config, micro_batch=rows, accumulation=effective // rows)
            if make_plan(smaller, shape, limits).fits:
                return rows
    return 0


class _Work:
    """What the parts of a model take in one run: its modules' weights, and what is alive while they compute."""

    def __init__(self, config: Config, shape: ModelShape, text_tokens: int):
        self.config, self.shape = config, shape
        self.training, self.scoring = (
            memory.batch_of(shape, config, rows, text_tokens) for rows in (config.micro_batch, config.score_batch)
        )
        self.modules = memory.weights_by_module(shape, config)
        self.layers = [f"{LAYERS}.{number}" for number in range(shape.layers)]
        tied = [] if HEAD in self.modules else [HEAD]
        self.first = [VISION, EMBEDDINGS, ROTARY, *tied]
        self.last = [NORM, *([] if tied else [HEAD])]

    def use(self, modules: Sequence[str]) -> Bytes:
        """What a GPU with these modules holds at the peak of the run."""
        weights: Bytes = {}
        for module in modules:
            for group, size in self.modules.get(module, {}).items():
                weights[group] = weights.get(group, 0) + size
        phases = [self._training(modules), {memory.SCORING: sum(self._scoring(modules).values())}]
        return {**weights, **max(phases, key=lambda phase: sum(phase.values()))}

    def _training(self, modules: Sequence[str]) -> Bytes:
        layers = sum(module.startswith(LAYERS) for module in modules)
        phases = [{}]
        kept = {memory.KEPT: layers * memory.kept_bytes(self.shape, self.config, self.training)}
        if layers:
            phases.append(kept | memory.training_bytes(self.shape, self.config, self.training))
        if NORM in modules:
            phases.append(kept | {memory.LOGITS: memory.logits_bytes(self.shape, self.training)})
        if VISION in modules:
            phases.append({memory.PIXELS: memory.vision_bytes(self.shape, self.training)})
        return max(phases, key=lambda phase: sum(phase.values()))

    def _scoring(self, modules: Sequence[str]) -> Bytes:
        phases = [{}]
        if any(module.startswith(LAYERS) for module in modules):
            phases.append(memory.scoring_bytes(self.shape, self.config, self.scoring))
        if VISION in modules:
            phases.append({memory.PIXELS: memory.vision_bytes(self.shape, self.scoring)})
        return max(phases, key=lambda phase: sum(phase.values()))


def _spread(work: _Work, limits: Sequence[int], left: int) -> list[list[str]] | None:
    """Each GPU's modules where as many layers as leave `left` bytes free go to each GPU in turn; None where some stay over."""
    shares, waiting = [], list(work.layers)
    for number, limit in enumerate(limits):
        is_last = number == len(limits) - 1
        share = [*(work.first if number == 0 else []), *(work.last if is_last else [])]
        taken = 0
        while taken < len(waiting) and sum(work.use([*share, *waiting[: taken + 1]]).values()) <= limit - left:
            taken += 1
        if number == 0 and taken < min(work.shape.deepstack_layers, len(waiting)):
            return None
        shares.append([*share, *waiting[:taken]])
        waiting = waiting[taken:]
        if sum(work.use(shares[-1]).values()) > limit - left:
            return None
    return None if waiting else shares


def _gpu_plan(work: _Work, limit: int, modules: Sequence[str]) -> GpuPlan:
    use, streamed = work.use(modules), 0
    if work.config.offload_experts and memory.EXPERTS in use:
        layers = [module for module in modules if work.modules.get(module, {}).get(memory.EXPERTS)]
        each = use[memory.EXPERTS] // len(layers)
        over = sum(use.values()) - limit
        if over > 0:
            streamed = min(len(layers), -(-over // each) + STREAM_SLOTS)
            use[memory.EXPERTS] -= (streamed - STREAM_SLOTS) * each
    return GpuPlan(limit, tuple(modules), use, streamed)

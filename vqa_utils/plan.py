"""The memory plan: which module lies on which GPU and what that takes, before anything is loaded. Free of torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vqa_utils import memory
from vqa_utils.config import Config
from vqa_utils.memory import Bytes
from vqa_utils.shapes import LAYERS, ModelShape

EMBEDDINGS, ROTARY, NORM = (f"model.language_model.{part}" for part in ("embed_tokens", "rotary_emb", "norm"))
VISION, HEAD = "model.visual", "lm_head"
RESERVE = 0.05  # of a GPU's limit stays free where the plan chooses how much to put there: what the allocator cannot reuse
SCORE_BATCH = 8  # rows scored at a time, until a plan says how many
STREAM_SLOTS = 2  # layers whose streamed experts lie on a GPU at a time: the one at work, and the next


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
    streamed_layers: tuple[str, ...] = ()
    """Decoder layers whose experts wait in host memory."""
    kept_layers: tuple[str, ...] = ()
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


@dataclass(frozen=True)
class Plan:
    """Where a model goes, and whether it fits."""

    gpus: tuple[GpuPlan, ...]

    @property
    def fits(self) -> bool:
        return bool(self.gpus) and all(gpu.left >= 0 for gpu in self.gpus)

    @property
    def device_map(self) -> dict[str, int]:
        """Each module's GPU, as `from_pretrained` takes it."""
        return {module: number for number, gpu in enumerate(self.gpus) for module in gpu.modules}

    @property
    def streamed_layers(self) -> list[str]:
        """On all GPUs."""
        return [layer for gpu in self.gpus for layer in gpu.streamed_layers]

    @property
    def kept_layers(self) -> list[str]:
        """On all GPUs."""
        return [layer for gpu in self.gpus for layer in gpu.kept_layers]


def make_plan(config: Config, shape: ModelShape, limits: Sequence[int], text_tokens: int = memory.TEXT_TOKENS) -> Plan:
    """Spread the decoder layers so that what is left free on each GPU, or what it lacks, is equal, within a layer.

    The vision tower and the embeddings are on the first GPU (a tied head too), with the first layers, since DeepStack adds
    features of the tower to them; the last norm and the head are on the last. With `offload_experts`, what a GPU lacks is streamed.

    Args:
        limits: what each GPU may hold, in bytes.
        text_tokens: of a row, beside those of its image.
    """
    work = _Work(settled(config, shape, limits), shape, text_tokens)
    low, high = -10 * sum(sum(groups.values()) for groups in work.modules.values()), max(limits, default=0)
    while high - low > 1:  # the largest amount that can be left free on every GPU
        middle = (low + high) // 2
        low, high = (middle, high) if _spread(work, limits, middle) else (low, middle)
    plan = Plan(tuple(map(work.streamed, _spread(work, limits, low) or ())))
    return with_kept_layers(plan, work.config, shape, text_tokens)


def with_kept_layers(plan: Plan, config: Config, shape: ModelShape, text_tokens: int) -> Plan:
    """Under "auto", memory that training would leave free keeps layers whole for the backward.

    As many as fit beside the reserve with rows as long as `LONG_TEXT_TOKENS`; where experts are streamed, none.
    """
    if config.use_gradient_checkpointing != "auto":
        return plan
    gpus, longest = [], _Work(config, shape, max(text_tokens, memory.LONG_TEXT_TOKENS))
    for gpu in plan.gpus:
        layers = tuple(module for module in gpu.modules if module.startswith(LAYERS) and not gpu.streamed_layers)
        choices = (replace(gpu, kept_layers=layers[first:]) for first in range(len(layers)))  # the last are done with first
        limit = (1 - RESERVE) * gpu.limit
        gpus.append(next((keeps for keeps in choices if longest.again(keeps).peaks["training"] <= limit), gpu))
    return with_text(Plan(tuple(gpus)), config, shape, text_tokens)


def with_text(plan: Plan, config: Config, shape: ModelShape, text_tokens: int) -> Plan:
    """The same placement, for rows of another length."""
    return Plan(tuple(map(_Work(config, shape, text_tokens).again, plan.gpus)))


def largest_micro_batch(config: Config, shape: ModelShape, limits: Sequence[int]) -> int:
    """The largest divisor of the effective batch that fits as a micro-batch; 0 where not even one row does.

    More than one row leave `RESERVE` of each GPU free.
    """
    config = config if config.is_settled else replace(config, score_batch=SCORE_BATCH)
    for rows in range(config.effective_batch, 0, -1):
        if config.effective_batch % rows == 0:
            plan = make_plan(config.with_micro_batch(rows), shape, limits)
            if plan.fits and (rows == 1 or all(gpu.left >= RESERVE * gpu.limit for gpu in plan.gpus)):
                return rows
    return 0


def largest_score_batch(config: Config, shape: ModelShape, limits: Sequence[int]) -> int:
    """The most rows that can be scored at once in the memory that training takes on each GPU: a power of two, at most 128."""
    for rows in (128, 64, 32, 16, 8, 4, 2):
        plan = make_plan(replace(config, score_batch=rows), shape, limits)
        if all(gpu.total == gpu.peaks["training"] for gpu in plan.gpus):
            return rows
    return 1


def settled(config: Config, shape: ModelShape, limits: Sequence[int]) -> Config:
    """The settings with a number for each batch that is "auto"; one row where nothing fits."""
    if config.micro_batch == "auto":
        config = config.with_micro_batch(max(1, largest_micro_batch(config, shape, limits)))
    if config.score_batch == "auto":
        config = replace(config, score_batch=largest_score_batch(config, shape, limits))
    return config


class _Work:
    """What the parts of a model take in one run: its modules' weights, and what is alive while they compute."""

    def __init__(self, config: Config, shape: ModelShape, text_tokens: int):
        self.config, self.shape = config, shape
        self.training = memory.batch_of(shape, config, config.micro_batch, text_tokens, training=True)
        self.scoring = memory.batch_of(shape, config, config.score_batch, text_tokens + (config.tta - 1) * memory.OPTION_TOKENS)
        self.modules = memory.weights_by_module(shape, config)
        self.layers = [f"{LAYERS}.{number}" for number in range(shape.layers)]
        tied = [] if HEAD in self.modules else [HEAD]
        self.first = [VISION, EMBEDDINGS, ROTARY, *tied]
        self.last = [NORM, *([] if tied else [HEAD])]

    def on_one_gpu(self, modules: Sequence[str], limit: int) -> GpuPlan:
        """The plan of a GPU with these modules, none of them streamed."""
        weights: Bytes = {}
        for module in modules:
            for group, size in self.modules.get(module, {}).items():
                weights[group] = weights.get(group, 0) + size
        return self.planned(modules, limit, weights, ())

    def streamed(self, gpu: GpuPlan) -> GpuPlan:
        """With `offload_experts`, the plan with those experts streamed that do not fit."""
        layers = [module for module in gpu.modules if memory.EXPERTS in self.modules.get(module, {})]
        if gpu.left >= 0 or not (self.config.offload_experts and layers):
            return gpu
        a_layer = gpu.weights[memory.EXPERTS] // len(layers)
        count = min(len(layers), math.ceil((RESERVE * gpu.limit - gpu.left) / a_layer) + STREAM_SLOTS)
        on_gpu = {**gpu.weights, memory.EXPERTS: gpu.weights[memory.EXPERTS] - (count - STREAM_SLOTS) * a_layer}
        # Spread evenly, so that a copy has the layers between two streamed ones to hide behind
        layers = [layers[number * len(layers) // count] for number in range(count)]
        return self.planned(gpu.modules, gpu.limit, on_gpu, tuple(layers))

    def again(self, gpu: GpuPlan) -> GpuPlan:
        """What the same modules take."""
        return self.planned(gpu.modules, gpu.limit, gpu.weights, gpu.streamed_layers, gpu.kept_layers)

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
        training = memory.training_bytes(self.shape, self.config, self.training, len(layers), len(kept), head=NORM in modules)
        held, frozen = sum(weights.values()), sum(weights.values()) - weights.get(memory.LORA, 0)
        others = {
            "loading": frozen - weights.get("vision", 0) + memory.loading_bytes(self.shape) * bool(layers),  # the tower is last
            "scoring": held + memory.scoring_bytes(self.shape, self.scoring, first=VISION in modules) * bool(layers),
        }
        if VISION in modules:
            others["vision tower"] = held + max(
                memory.vision_bytes(self.shape, batch) for batch in (self.training, self.scoring)
            )
        return GpuPlan(limit, tuple(modules), weights, training, others, streamed, kept)


def _spread(work: _Work, limits: Sequence[int], left: int) -> list[GpuPlan] | None:
    """Each GPU in turn gets as many layers as leave `left` bytes free; None where some stay over."""
    gpus, waiting = [], list(work.layers)
    for number, limit in enumerate(limits):
        fixed = [*(work.first if number == 0 else []), *(work.last if number == len(limits) - 1 else [])]
        counts = range(work.shape.deepstack_layers if number == 0 else 0, len(waiting) + 1)
        fitting = [n for n in counts if work.on_one_gpu([*fixed, *waiting[:n]], limit).left >= left]
        if not fitting:
            return None
        gpus.append(work.on_one_gpu([*fixed, *waiting[: fitting[-1]]], limit))
        waiting = waiting[fitting[-1] :]
    return None if waiting else gpus

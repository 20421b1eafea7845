"""Count the memory of a share of a model on a GPU, phase by phase."""

import math
from collections.abc import Sequence
from dataclasses import replace

from vqa_utils.config import Config
from vqa_utils.planning import activations
from vqa_utils.planning.batches import batches_of, second_look_batches
from vqa_utils.planning.gpu_plan import RESERVE, GpuPlan
from vqa_utils.planning.images import vision_bytes
from vqa_utils.planning.memory import (
    EXPERTS,
    EXPERTS_AT_ONCE,
    LORA,
    NORMS,
    Bytes,
    weights_by_module,
)
from vqa_utils.planning.shapes import LAYERS, VISION, ModelShape

EMBEDDINGS = "model.language_model.embed_tokens"
ROTARY = "model.language_model.rotary_emb"
NORM = "model.language_model.norm"
HEAD = "lm_head"

# Offloaded layers whose experts are on a GPU at a time: the one that computes, and the next
OFFLOAD_SLOTS = 2


class Placement:
    """Count the memory of any share of a model in one run.

    Attributes:
        layers: the decoder layers, in order.
        first: the modules before them, for the first GPU.
        last: the modules after them, for the last GPU.
    """

    def __init__(
        self,
        config: Config,
        shape: ModelShape,
        *,
        gives_back: bool = False,
        experts_at_once: int = EXPERTS_AT_ONCE,
    ):
        """Prepare the counts.

        Args:
            config: settings with a number for each batch.
            shape: the model's.
            gives_back: folds that share the base give unused memory back after each turn.
            experts_at_once: experts of a layer whose weights are dense at a time.
        """
        self.gives_back = gives_back
        self.experts_at_once = experts_at_once
        self.config = config
        self.shape = shape
        self.layers = shape.layer_names
        weights = weights_by_module(shape, config)  # bytes by module and group
        self.tower = sum(weights[VISION].values())  # bytes
        # A tower that is not kept has gone by the time of training and scoring
        is_kept = not config.caches_features
        self.weights = {name: weights[name] for name in weights if is_kept or name != VISION}
        self.training = batches_of(shape, config, config.micro_batch_rows, training=True)
        self.scoring = batches_of(shape, config, config.score_batch_rows, orders=config.tta)
        if config.second_look:
            self.scoring += second_look_batches(shape, config)
        self.first = [VISION, EMBEDDINGS, ROTARY]
        self.last = [NORM]
        is_tied = HEAD not in self.weights
        if is_tied:
            self.first.append(HEAD)
        else:
            self.last.append(HEAD)

    def without_offloading(self, modules: Sequence[str], limit: int) -> GpuPlan:
        """Plan a GPU with all weights of these modules."""
        weights: Bytes = {}
        for module in modules:
            for group, size in self.weights.get(module, {}).items():
                weights[group] = weights.get(group, 0) + size
        return self._planned(modules, limit, weights)

    def with_offloading(self, modules: Sequence[str], limit: int, reserve: float = 0) -> GpuPlan:
        """Plan a GPU with these modules; offload as many layers' experts as it lacks memory for.

        Two slots on the GPU take the offloaded experts in turn. The offloaded layers are spread
        evenly, so each copy hides behind the layers before it. Three of eight:

            layer           0  1  2  3  4  5  6  7
            experts         -  g  -  g  g  -  g  g      - offloaded, g on the GPU

        Args:
            modules: the GPU's.
            limit: its bytes.
            reserve: share of the limit. If less would stay free, offloading frees `RESERVE`.
        """
        gpu = self.without_offloading(modules, limit)
        with_experts = [module for module in modules if EXPERTS in self.weights.get(module, {})]
        if gpu.left >= reserve * limit or not with_experts:
            return gpu
        layer_bytes = gpu.weights[EXPERTS] // len(with_experts)
        lacking = math.ceil((RESERVE * limit - gpu.left) / layer_bytes)  # layers
        # The slots take the memory of as many layers, so these go to the host in addition
        count = min(len(with_experts), lacking + OFFLOAD_SLOTS)
        freed = (count - OFFLOAD_SLOTS) * layer_bytes
        weights = {**gpu.weights, EXPERTS: gpu.weights[EXPERTS] - freed}
        places = [number * len(with_experts) // count for number in range(count)]
        offloaded = tuple(with_experts[place] for place in places)
        return self._planned(modules, limit, weights, offloaded)

    def recounted(self, gpu: GpuPlan) -> GpuPlan:
        """Plan the same GPU, with the same modules and weights, for this run's batches."""
        return self._planned(
            gpu.modules, gpu.limit, gpu.weights, gpu.offloaded_layers, gpu.uncheckpointed_layers
        )

    def _planned(
        self,
        modules: Sequence[str],
        limit: int,
        weights: Bytes,
        offloaded: tuple[str, ...] = (),
        uncheckpointed: tuple[str, ...] = (),
    ) -> GpuPlan:
        """Count each phase beside the weights on the GPU."""
        layers = tuple(module for module in modules if module.startswith(LAYERS))
        if self.config.use_gradient_checkpointing is False:
            uncheckpointed = layers
        share = activations.Share(
            len(layers), len(uncheckpointed), VISION in modules, NORM in modules
        )
        training = max(
            (
                activations.training_bytes(
                    self.shape,
                    self.config,
                    batch,
                    share,
                    self.experts_at_once,
                )
                for batch in self.training
            ),
            key=lambda sizes: sum(sizes.values()),
        )
        kept = training[activations.SAVED] + training[activations.PIXELS]
        peaks = self._other_peaks(modules, weights, kept, has_layers=bool(layers))
        return GpuPlan(
            limit,
            tuple(modules),
            weights,
            training,
            peaks,
            offloaded,
            self.config.sharing_folds,
            self.gives_back,
            uncheckpointed,
            self._held_in_scoring() if VISION in modules else 0,
            self.experts_at_once,
        )

    def _held_in_scoring(self) -> int:
        return max(activations.held_in_scoring(self.shape, batch) for batch in self.scoring)

    def _other_peaks(
        self, modules: Sequence[str], weights: Bytes, kept: int, *, has_layers: bool
    ) -> Bytes:
        """Count the peaks of loading, scoring and the vision tower.

        Args:
            modules: on the GPU.
            weights: of these, by group.
            kept: by a fold that trains, between its turns, beside LoRA.
            has_layers: True if there are decoder layers among the modules.
        """
        lora = weights.get(LORA, 0)
        base = sum(weights.values()) - lora
        others = self.config.sharing_folds - 1

        def with_others(own: int) -> int:
            of_each = lora + kept if self.gives_back else own
            return base + own + others * (of_each + weights.get(NORMS, 0))

        has_vision = VISION in modules
        # While layers are loaded, there is no LoRA yet, and no tower: it is loaded last
        loading = base - weights.get("vision", 0)
        scoring = lora
        if has_layers:
            loading += activations.loading_bytes(self.shape)
            scoring += max(
                activations.scoring_bytes(
                    self.shape,
                    self.config,
                    batch,
                    first=has_vision,
                    experts_at_once=self.experts_at_once,
                )
                for batch in self.scoring
            )
        peaks = {"loading": loading, "scoring": with_others(scoring)}
        if has_vision and self.config.caches_features:
            alone = replace(self.scoring[0], rows=1)  # one picture at a time, and no fold yet
            peaks["vision tower"] = base + self.tower + vision_bytes(self.shape, alone)
        elif has_vision:
            batches = [*self.training, *self.scoring]
            tower = max(vision_bytes(self.shape, batch) for batch in batches)
            peaks["vision tower"] = with_others(lora + tower)
        return peaks

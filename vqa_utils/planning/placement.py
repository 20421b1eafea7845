"""Count the memory of a share of a model on a GPU, phase by phase."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vqa_utils.config import Config
from vqa_utils.planning import activations
from vqa_utils.planning.memory import EXPERTS, LORA, Bytes, weights_by_module
from vqa_utils.planning.shapes import LAYERS, VISION, ModelShape

EMBEDDINGS = "model.language_model.embed_tokens"
ROTARY = "model.language_model.rotary_emb"
NORM = "model.language_model.norm"
HEAD = "lm_head"

# Share of a GPU's limit to leave free wherever the plan has a choice: what the allocator holds and
# cannot use again
RESERVE = 0.05
# Offloaded layers whose experts are on a GPU at a time: the one that computes, and the next
OFFLOAD_SLOTS = 2
# Batches of one fold at a time, in scoring on several GPUs
IN_FLIGHT = 2


@dataclass(frozen=True)
class GpuPlan:
    """One GPU's share of the model, in bytes.

    A phase's peak is its weights and activations:

        0                                                              peak      limit
        | weights by group | LoRA and its optimizer | activations ... |   left   |

    Folds that share the base are taken to be in the same phase, as each keeps what its highest
    peak took. Unless they give back what they do not need between their turns: then the working
    memory of one is counted, and what the others have saved for their backward.

        | weights | LoRA, activations of fold A | the same of fold B | left |
        | weights | LoRA, saved of fold A | the same of fold B | working memory of one |   left   |
    """

    limit: int
    """The most bytes for the run."""
    modules: tuple[str, ...]
    """The modules on the GPU."""
    weights: Bytes
    """By group. LoRA with its gradients and optimizer is one of them."""
    training: Bytes
    """Activations at the peak of a training step, by kind."""
    other_peaks: Bytes
    """Peaks of loading, scoring and the vision tower, weights included."""
    offloaded_layers: tuple[str, ...] = ()
    """Decoder layers whose experts are in host memory."""
    folds: int = 1
    """Folds at a time around these weights. LoRA and activations are those of one."""
    gives_back: bool = False
    """They give unused memory back after each turn."""
    uncheckpointed_layers: tuple[str, ...] = ()
    """Decoder layers that skip activation checkpointing: the backward does not recompute them."""
    held_in_scoring: int = 0
    """What a pass of scoring holds on the first GPU while it is on another."""

    @property
    def peaks(self) -> Bytes:
        """The peak of each phase, weights included."""
        base = sum(self.weights.values()) - self.weights.get(LORA, 0)
        others = (self.folds - 1) * (self.kept if self.gives_back else self.of_one_fold)
        return {"training": base + others + self.of_one_fold, **self.other_peaks}

    @property
    def kept(self) -> int:
        """What a fold keeps between its turns: LoRA, its optimizer, and tensors of its backward."""
        images = self.training[activations.PIXELS]
        return self.weights.get(LORA, 0) + self.training[activations.SAVED] + images

    @property
    def of_one_fold(self) -> int:
        """LoRA with its optimizer, and the activations of training, of one fold."""
        return self.weights.get(LORA, 0) + sum(self.training.values())

    @property
    def before_scoring(self) -> int:
        """The highest peak of loading and training."""
        return max(self.peaks["training"], self.peaks["loading"])

    @property
    def total(self) -> int:
        """The highest peak."""
        return max(self.peaks.values())

    @property
    def left(self) -> int:
        """Bytes of the limit free at the highest peak; negative if it does not fit."""
        return self.limit - self.total

    @property
    def layers(self) -> list[str]:
        """The decoder layers among the modules, in order."""
        return [module for module in self.modules if module.startswith(LAYERS)]


@dataclass(frozen=True)
class Plan:
    """Each GPU's modules, and the memory for them.

        GPU 0      vision tower | embeddings (and a tied head) | layers 0 to i
        GPU 1                                                  | layers i + 1 to j
        last GPU                                               | layers j + 1 to 47 | norm | head

    A token passes the GPUs from the first to the last. DeepStack adds features of the vision tower
    to the first layers, so these are on its GPU.
    """

    gpus: tuple[GpuPlan, ...]

    @property
    def fits(self) -> bool:
        """True if there is a GPU, and no peak is above its GPU's limit."""
        return bool(self.gpus) and all(gpu.left >= 0 for gpu in self.gpus)

    @property
    def leaves_reserve(self) -> bool:
        """True if `RESERVE` of each GPU's limit stays free."""
        return all(gpu.left >= RESERVE * gpu.limit for gpu in self.gpus)

    @property
    def weights(self) -> int:
        """Bytes of the base on all GPUs."""
        size = 0
        for gpu in self.gpus:
            size += sum(gpu.weights.values()) - gpu.weights.get(LORA, 0)
        return size

    @property
    def batches_in_flight(self) -> int:
        """Batches that a fold alone has in flight in scoring, one on each of two GPUs."""
        is_cut = sum(bool(gpu.layers) for gpu in self.gpus) > 1
        if not is_cut or self.offloaded_layers:
            return 1
        first = self.gpus[0]
        peak = max(first.peaks["scoring"], first.peaks["vision tower"]) + first.held_in_scoring
        return IN_FLIGHT if peak <= (1 - RESERVE) * first.limit else 1

    @property
    def gives_back(self) -> bool:
        """True if folds that share the base give unused memory back after each turn."""
        return any(gpu.gives_back for gpu in self.gpus)

    @property
    def device_map(self) -> dict[str, int]:
        """Each module's GPU, as `from_pretrained` takes it."""
        places = {}
        for number, gpu in enumerate(self.gpus):
            places.update(dict.fromkeys(gpu.modules, number))
        return places

    @property
    def offloaded_layers(self) -> list[str]:
        """Decoder layers of all GPUs with experts in host memory."""
        return [layer for gpu in self.gpus for layer in gpu.offloaded_layers]

    @property
    def uncheckpointed_layers(self) -> list[str]:
        """Decoder layers of all GPUs without activation checkpointing."""
        return [layer for gpu in self.gpus for layer in gpu.uncheckpointed_layers]


class Placement:
    """Count the memory of any share of a model in one run.

    Attributes:
        layers: the decoder layers, in order.
        first: the modules before them, for the first GPU.
        last: the modules after them, for the last GPU.
    """

    def __init__(
        self, config: Config, shape: ModelShape, text_tokens: int, *, gives_back: bool = False
    ):
        """Prepare the counts for rows with so many text tokens.

        Args:
            config: settings with a number for each batch.
            shape: the model's.
            text_tokens: of a row in training; scoring adds those of further option orders.
            gives_back: folds that share the base give unused memory back after each turn.
        """
        self.gives_back = gives_back
        self.config = config
        self.shape = shape
        self.layers = shape.layer_names
        self.weights = weights_by_module(shape, config)  # bytes by module and group
        self.training = activations.batch_of(
            shape, config, config.micro_batch_rows, text_tokens, training=True
        )
        further_orders = (config.tta - 1) * activations.OPTION_TOKENS
        self.scoring = activations.batch_of(
            shape, config, config.score_batch_rows, text_tokens + further_orders
        )
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
        training = activations.training_bytes(
            self.shape,
            self.config,
            self.training,
            len(layers),
            len(uncheckpointed),
            first=VISION in modules,
            head=NORM in modules,
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
            activations.held_in_scoring(self.shape, self.scoring) if VISION in modules else 0,
        )

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
            return base + own + others * of_each

        has_vision = VISION in modules
        # While layers are loaded, there is no LoRA yet, and no tower: it is loaded last
        loading = base - weights.get("vision", 0)
        scoring = lora
        if has_layers:
            loading += activations.loading_bytes(self.shape)
            scoring += activations.scoring_bytes(self.shape, self.scoring, first=has_vision)
        peaks = {"loading": loading, "scoring": with_others(scoring)}
        if has_vision:
            tower = max(
                activations.vision_bytes(self.shape, self.training),
                activations.vision_bytes(self.shape, self.scoring),
            )
            peaks["vision tower"] = with_others(lora + tower)
        return peaks

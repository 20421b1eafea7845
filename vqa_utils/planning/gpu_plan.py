"""Say what a plan puts on each GPU, and what that takes."""

from dataclasses import dataclass

from vqa_utils.planning import activations
from vqa_utils.planning.memory import EXPERTS_AT_ONCE, LORA, NORMS, Bytes
from vqa_utils.planning.shapes import LAYERS

# Share of a GPU's limit to leave free wherever the plan has a choice: what the allocator holds and
# cannot use again
RESERVE = 0.05
# Batches of one fold at a time, in scoring on several GPUs
IN_FLIGHT = 2


@dataclass(frozen=True)
class GpuPlan:
    """One GPU's share of the model, in bytes.

    A phase's peak is its weights and activations:

        0                                                              peak      limit
        | weights by group | LoRA and its optimizer | activations ... |   left   |

    Folds that share the base are taken to be in the same phase, as each keeps what its highest
    peak took, and has fp32 norms and a router of its own. Unless they give back what they do not
    need between their turns: then the working memory of one is counted, and what the others have
    saved for their backward.

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
    experts_at_once: int = EXPERTS_AT_ONCE
    """Experts of a layer whose weights are dense at a time."""

    @property
    def peaks(self) -> Bytes:
        """The peak of each phase, weights included."""
        base = sum(self.weights.values()) - self.weights.get(LORA, 0)
        of_another = self.kept if self.gives_back else self.of_one_fold
        others = (self.folds - 1) * (of_another + self.weights.get(NORMS, 0))
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
    def experts_at_once(self) -> int:
        """Experts of a layer whose weights are dense at a time."""
        return min((gpu.experts_at_once for gpu in self.gpus), default=EXPERTS_AT_ONCE)

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

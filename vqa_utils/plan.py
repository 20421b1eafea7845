"""What a preset needs, before anything is loaded: free of torch, so that the answer comes at once."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from vqa_utils.config import DEMO_MODEL_NAME, QWEN3_30B, Config, size_in_bytes
from vqa_utils.errors import VqaError
from vqa_utils.presets import PRESETS, preset

EXPERTS_AT_ONCE = 32  # whose dense 16-bit weights are alive at a time: 288 MiB of the 30B's 1,152 a layer
NF4_BITS = 4.127  # a weight, with double quantisation: 4 + 8/64 + 32/(64 * 256)
# Activations, logits and dequantised experts beside the weights, at batch 1 and image side 384: peaks of 9.57 and
# 9.17 GiB measured on two GPUs for weights of 8.49 and 8.09
WORK_GIB = 1.1


class PlanError(VqaError):
    """The machine does not have what the settings need."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi names it."""

    name: str
    memory_gib: float


@dataclass(frozen=True)
class Weights:
    """Parameters by how they are kept, in billions, counted from the published config.json."""

    nf4: float
    """attention, MLP and experts of the language model"""
    sixteen_bit: float
    """embeddings, head, vision tower"""


WEIGHTS = {
    QWEN3_30B: Weights(nf4=29.90, sixteen_bit=1.18),
    "Qwen/Qwen3-VL-8B-Instruct": Weights(nf4=6.95, sixteen_bit=1.82),
    "Qwen/Qwen2.5-VL-3B-Instruct": Weights(nf4=2.77, sixteen_bit=0.98),
}


def find_gpus() -> list[Gpu]:
    """The GPUs of this machine; none where nvidia-smi is not there or finds none."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    if found.returncode:
        return []
    rows = [line.rsplit(",", 1) for line in found.stdout.splitlines() if line.strip()]
    return [Gpu(name.strip(), float(mib) / 1024) for name, mib in rows]


def weights_gib(config: Config) -> float | None:
    """The size of the loaded base in GiB; None for a model whose shape is not known here."""
    if config.model not in WEIGHTS:
        return None
    weights = WEIGHTS[config.model]
    bits = NF4_BITS if config.quantization == "nf4" else 16
    return (weights.nf4 * bits / 8 + weights.sixteen_bit * 2) * 1e9 / 2**30


def usable_gib(config: Config, gpus: Sequence[Gpu]) -> float:
    """What the settings allow of these GPUs, in GiB: each GPU's memory, or its limit where that is less."""
    limits = [size_in_bytes(size) / 2**30 for size in config.max_memory] or [gpu.memory_gib for gpu in gpus]
    return sum(min(gpu.memory_gib, limit) for gpu, limit in zip(gpus, limits, strict=False))


def needed_gib(config: Config) -> float | None:
    """Weights and working memory in GiB over all the GPUs that the settings name; None for an unknown model."""
    weights = weights_gib(config)
    return None if weights is None else weights + WORK_GIB * max(1, len(config.max_memory))


def check_machine(config: Config, gpus: Sequence[Gpu]) -> None:
    """Say at once that a machine cannot run the settings.

    Raises:
        PlanError: with what is needed, what is there, and the presets that would work here.
    """
    if config.model == DEMO_MODEL_NAME or _fits(config, gpus):
        return
    needed = needed_gib(config)
    there = ", ".join(f"{gpu.name} with {gpu.memory_gib:.1f} GiB" for gpu in gpus) or "no GPU"
    need = f"about {needed:.1f} GiB of GPU memory" if needed else "a GPU"
    limit = f" within max_memory={','.join(config.max_memory)}" if config.max_memory else ""
    working = [name for name in PRESETS if _fits(preset(name), gpus) or name == "demo"]
    raise PlanError(
        f"preset {config.preset} ({config.model}): expected {need}{limit}, found {there}; "
        f"presets that work here: {', '.join(working)} (--preset {working[0]})"
    )


def _fits(config: Config, gpus: Sequence[Gpu]) -> bool:
    if not gpus:
        return False
    needed = needed_gib(config)
    return needed is None or needed <= usable_gib(config, gpus)

"""Named settings. Each states only how it differs from the defaults, with the reason beside the number."""

from dataclasses import dataclass, field, replace
from typing import Any

from vqa_utils.config import DEMO_DATA, DEMO_MODEL_NAME, Config, field_types
from vqa_utils.setting_types import ConfigError


@dataclass(frozen=True)
class Preset:
    """Named settings: how they differ from the defaults, and which machine they are for."""

    for_what: str
    changes: dict[str, Any] = field(default_factory=dict)


# `tta` is 4 in all but the demo's, the default of `Config`: entrants of the SSAFY challenge report 1.5 points for it, and by
# the plan it costs a tenth of a run's minutes. The demo's switches follow what was measured there (README.md)
_DENSE = {
    "lora_r": 16,
    "lora_alpha": 32,
    "learning_rate": 1e-4,
}  # fewer weights to move, so more rank and a higher rate
PRESETS: dict[str, Preset] = {
    "safe": Preset("two T4 of 16 GB (recommended)", {"max_memory": ("14GB", "14GB")}),  # 14.74 GiB usable a T4
    "balanced": Preset(
        "two T4 of 16 GB, more pixels and epochs",
        # 448 px: 196 image tokens against 144; accumulation 12 keeps the step count up over three epochs
        {"image_side": 448, "lora_r": 12, "lora_alpha": 24, "accumulation": 12, "epochs": 3, "max_memory": ("14GB", "14GB")},
    ),
    "performance": Preset(
        "two V100 of 32 GB, or any two cards of 24 GB or more",
        # 512 px: 256 image tokens; 24 GB cards keep 4 GB for the context and for batches of uneven length
        {"image_side": 512, "lora_r": 16, "lora_alpha": 32, "epochs": 3,
         "max_memory": ("20GB", "20GB")},
    ),
    "low_memory": Preset(
        "two T4, after an out-of-memory error",
        # 320 px: 100 image tokens; 12 GB leave 2 GB a card for what else runs there
        {"image_side": 320, "lora_r": 4, "lora_alpha": 8, "micro_batch": 4, "accumulation": 8, "use_cpu_offload": True,
         "max_memory": ("12GB", "12GB")},
    ),
    "single_gpu": Preset(
        "one T4 of 16 GB",
        {**_DENSE, "model": "Qwen/Qwen2.5-VL-3B-Instruct", "image_side": 512, "accumulation": 8, "max_memory": ("14GB",)},
    ),
    "dense_8b": Preset(
        "one T4 of 16 GB a fold",
        {**_DENSE, "model": "Qwen/Qwen3-VL-8B-Instruct", "image_side": 448, "max_memory": ("14GB",)},
    ),
    "demo": Preset(
        "any machine, no GPU (the default)",
        # The tiny base reads 64 px; a small model far from its optimum takes a high rate and a few short epochs.
        # Without dropout and in one process, since a step takes a fifth of a second
        {"model": DEMO_MODEL_NAME, "data": DEMO_DATA, "image_side": 64, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0,
         "micro_batch": 16, "accumulation": 1, "epochs": 3, "learning_rate": 3e-3, "score_batch": 32, "tta": 1,
         "baselines": True, "num_workers": 0},
    ),
}  # fmt: skip


def preset(name: str, **changes: Any) -> Config:
    """The config of a preset, with `changes` on top.

    Raises:
        ConfigError: no preset has that name, or a value does not fit.
    """
    return Config(**{"preset": name, **preset_changes(name), **changes})


def differences(config: Config) -> dict[str, Any]:
    """How a run's settings differ from its preset, its data aside.

    The numbers that a run has where its preset says "auto" are no difference, as long as a step has as many rows.

    Raises:
        ConfigError: no preset has that name.
    """
    whole = preset(config.preset, data=config.data)
    if whole.micro_batch == "auto" and whole.effective_batch == config.effective_batch:
        whole = replace(whole, micro_batch=config.micro_batch, accumulation=config.accumulation)
    if whole.score_batch == "auto":
        whole = replace(whole, score_batch=config.score_batch)
    names = [name for name in field_types() if getattr(config, name) != getattr(whole, name)]
    return {name: getattr(config, name) for name in names}


def preset_changes(name: str) -> dict[str, Any]:
    """How a preset differs from the defaults.

    Raises:
        ConfigError: no preset has that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}, found {name!r}")
    return PRESETS[name].changes

"""Define named settings.

Each states only its differences from the defaults in `config.Config`, with reasons.
"""

from dataclasses import dataclass, replace
from typing import Any

from vqa_utils.config import DEMO_DATA, DEMO_MODEL_NAME, SETTINGS, Config
from vqa_utils.errors import did_you_mean
from vqa_utils.setting_types import AUTO, ConfigError


@dataclass(frozen=True)
class Preset:
    """Named settings: their machine, and their differences from the defaults."""

    for_what: str
    changes: dict[str, Any]


# `tta` is 4 in all but the demo's, the default of `Config`: entrants of the SSAFY challenge report
# 1.5 points for it, and by the plan it costs a tenth of a run's minutes. The demo keeps 1: its
# measured switches are in vqa_utils/experiments/README.md
_DENSE = {"lora_r": 16, "lora_alpha": 32, "learning_rate": 1e-4}  # fewer weights can move further
PRESETS: dict[str, Preset] = {
    "safe": Preset(
        "two T4 of 16 GB (recommended)",
        {"max_memory": ("14GB", "14GB")},  # a T4 has 14.74 GiB to use
    ),
    "balanced": Preset(
        "two T4 of 16 GB, more pixels and epochs",
        {
            "image_side": 448,  # 196 image tokens; `safe` has 144
            "lora_r": 12,
            "lora_alpha": 24,
            "accumulation": 12,  # keeps the number of steps up over three epochs
            "epochs": 3,
            "max_memory": ("14GB", "14GB"),
        },
    ),
    "performance": Preset(
        "two V100 of 32 GB, or any two cards of 24 GB or more",
        {
            "image_side": 512,  # 256 image tokens
            "lora_r": 16,
            "lora_alpha": 32,
            "epochs": 3,
            # 24 GB cards keep 4 GB for the CUDA context and for batches of uneven length
            "max_memory": ("20GB", "20GB"),
        },
    ),
    "low_memory": Preset(
        "two T4, after an out-of-memory error",
        {
            "image_side": 320,  # 100 image tokens
            "lora_r": 4,
            "lora_alpha": 8,
            "micro_batch": 4,  # times 8 passes: 32 rows per optimizer step; `safe` has 16
            "accumulation": 8,
            "use_cpu_offload": True,
            "max_memory": ("12GB", "12GB"),  # leaves 2 GB per card for what else runs there
        },
    ),
    "single_gpu": Preset(
        "one T4 of 16 GB",
        {
            **_DENSE,
            # A token of Qwen2.5-VL covers 28 px squared, not 32: 512 px give 18 * 18 = 324 tokens
            "model": "Qwen/Qwen2.5-VL-3B-Instruct",
            "image_side": 512,
            "accumulation": 8,
            "max_memory": ("14GB",),
        },
    ),
    "dense_8b": Preset(
        "one T4 of 16 GB per fold",
        {
            **_DENSE,
            "model": "Qwen/Qwen3-VL-8B-Instruct",
            "image_side": 448,
            "max_memory": ("14GB",),
        },
    ),
    "dense_32b": Preset(
        "two T4 of 16 GB, with hours to spend",
        {
            # A token passes ten times the weights of its way through the mixture. By the forecast,
            # 1,000 train and 1,000 test rows take 3.2 hours, and 0.5 with `safe`; 4,000 of each
            # take 12.5, or 6.3 with use_kfold=false
            "model": "Qwen/Qwen3-VL-32B-Instruct",
            "max_memory": ("14GB", "14GB"),
        },
    ),
    "demo": Preset(
        "any machine, no GPU (the default)",
        {
            "model": DEMO_MODEL_NAME,
            "data": DEMO_DATA,
            "image_side": 64,  # the size that the tiny base has learnt
            "lora_r": 8,
            "lora_alpha": 16,
            # a small model far from its optimum takes a high rate, few short epochs, no dropout
            "lora_dropout": 0.0,
            "epochs": 3,
            "learning_rate": 3e-3,
            "micro_batch": 16,
            "accumulation": 1,
            "score_batch": 32,
            "tta": 1,
            "baselines": True,
            "num_workers": 0,  # a step takes 0.2 s: no image is waited for
        },
    ),
}


def preset(name: str, **changes: Any) -> Config:
    """Make the config of a preset, with `changes` on top.

    Raises:
        ConfigError: no preset has that name, or a value does not fit.
    """
    return Config(**{"preset": name, **preset_changes(name), **changes})


# "auto" is replaced by a value for the data and the machine
RESOLVED = (
    *("score_batch", "folds_at_once", "cache_features"),
    *("text_tokens", "longest_text", "longest_test"),
)


def differences(config: Config) -> dict[str, Any]:
    """The differences of a run's settings from its preset, the places of data and model aside.

    A number in place of the preset's "auto" is no difference, as long as a step has as many rows.

    Raises:
        ConfigError: no preset has that name.
    """
    expected = preset(config.preset, data=config.data, model_dir=config.model_dir)
    if expected.micro_batch == AUTO and expected.effective_batch == config.effective_batch:
        expected = replace(
            expected, micro_batch=config.micro_batch, accumulation=config.accumulation
        )
    for name in RESOLVED:
        if getattr(expected, name) == AUTO:
            expected = replace(expected, **{name: getattr(config, name)})
    values = {name: getattr(config, name) for name in SETTINGS}
    return {name: value for name, value in values.items() if value != getattr(expected, name)}


def preset_changes(name: str) -> dict[str, Any]:
    """The differences of a preset from the defaults.

    Raises:
        ConfigError: no preset has that name.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"preset: expected one of {', '.join(PRESETS)}, found {name!r}"
            f"{did_you_mean(name, PRESETS)}"
        )
    return PRESETS[name].changes

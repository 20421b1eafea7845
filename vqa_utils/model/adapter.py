"""Put LoRA on a base: a new adapter, or a trained one from its folder.

Every fold starts from a fresh base.
"""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, ProcessorMixin

from vqa_utils.artifacts.files import (
    ArtifactError,
    read_json,
    settings_of,
    settings_to_json,
    write_json,
)
from vqa_utils.artifacts.paths import CONFIG_BESIDE_ADAPTER
from vqa_utils.artifacts.places import portable
from vqa_utils.config import NOT_OF_THE_ADAPTER, Config
from vqa_utils.model.features.encoding import Pictures
from vqa_utils.model.loading import finish, load_base, load_processor
from vqa_utils.planning.plan import Plan, memory_plan

BASE = "base_model_name_or_path"  # in PEFT's adapter_config.json
LANGUAGE_MODEL = r".*\blanguage_model\..*"  # the vision tower has layers of the same names


class AdaptedModel(NamedTuple):
    """A base with a trained adapter, and what belongs to it."""

    model: PeftModel
    processor: ProcessorMixin
    config: Config


def add_lora(model: PreTrainedModel, config: Config, plan: Plan | None) -> PeftModel:
    """Add new LoRA layers, in fp32, to the language model's `target_modules`.

    Raises:
        ValueError: the language model has no linear layer of one of these names.
    """
    _check_targets(model, config)
    targets = "|".join(map(re.escape, config.target_modules))
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=rf"{LANGUAGE_MODEL}\.({targets})",
    )
    torch.manual_seed(config.seed)  # of the new matrices A
    # Before `finish`, in which fast layers take checkpointing over
    enable_checkpointing(model, config, plan)
    # PEFT casts fp16 adapters to fp32: a GradScaler cannot unscale fp16 gradients
    adapted = get_peft_model(model, lora)
    # PEFT's README of the adapter takes the base's name from both; its settings have it by now
    model.name_or_path = model.config.name_or_path = portable(model.name_or_path)
    _end_backward_at_language_model(adapted)
    return finish(adapted, config, plan)


def _check_targets(model: PreTrainedModel, config: Config) -> None:
    """Raise ValueError where the language model lacks one of the `target_modules`."""
    names = [name for name, _ in model.named_modules() if re.fullmatch(LANGUAGE_MODEL, name)]
    missing = []
    for target in config.target_modules:
        if not any(name.endswith(f".{target}") for name in names):
            missing.append(target)
    if missing:
        raise ValueError(
            "target_modules: expected layers of the language model, "
            f"found none named {', '.join(missing)}"
        )


def enable_checkpointing(model: PreTrainedModel, config: Config, plan: Plan | None) -> None:
    """Turn on activation checkpointing in decoder layers.

    In all or none, as the settings say; under "auto", in those that the plan does not keep.
    """
    setting = config.use_gradient_checkpointing
    if setting is False:
        return
    if setting == "auto" and plan is None and model.device.type == "cpu":
        return  # host memory is no concern
    # transformers 5.23 renamed the method; 5.17 has the old name alone
    enable = (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})
    for name in plan.uncheckpointed_layers if plan else ():
        model.get_submodule(name).gradient_checkpointing = False


def _end_backward_at_language_model(model: PeftModel) -> None:
    """Stop the backward at the first LoRA layer: embeddings and vision tower need no gradient.

    Checkpointing comes with hooks that make the inputs of both ask for one, which its older
    variant needs. With them, each step would recompute the whole tower and go backward through it,
    for nothing.
    """
    model.disable_input_require_grads()
    for name, module in model.named_modules():
        if "visual" in name and hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False


def save_adapter(model: PeftModel, config: Config, folder: Path) -> None:
    """Write the adapter in safetensors, with the run's settings beside it."""
    model.save_pretrained(folder)
    name_base_portably(folder)
    write_json(folder / CONFIG_BESIDE_ADAPTER, settings_to_json(config))


def name_base_portably(folder: Path) -> None:
    """Name the base of an adapter's folder as it holds on any machine."""
    file = folder / "adapter_config.json"
    values = read_json(file)
    values[BASE] = portable(values[BASE] or "")
    write_json(file, values)


def load_adapter(
    folder: Path, run_config: Config, plan: Plan | None = None, pictures: Pictures | None = None
) -> AdaptedModel:
    """Load a fresh base with a trained adapter on it, as the settings beside the adapter say.

    Args:
        folder: the adapter's.
        run_config: the run's settings; they count where an adapter does not depend on them (data,
            memory limits, batch of the scoring).
        plan: of `run_config`; None on a CPU. Made again if the adapter's settings are others.
        pictures: all that the model will be shown, for `cache_features`.

    Raises:
        ArtifactError: no trained adapter lies in `folder`.
    """
    beside = folder / CONFIG_BESIDE_ADAPTER
    if not beside.exists():
        raise ArtifactError(
            f"{folder}: expected a trained adapter, found none; run notebook 03_train_fold first"
        )
    of_the_run = {name: getattr(run_config, name) for name in NOT_OF_THE_ADAPTER}
    config = dataclasses.replace(settings_of(read_json(beside), beside), **of_the_run)
    if config != run_config:
        plan = memory_plan(config)
    model = PeftModel.from_pretrained(load_base(config, plan, pictures), folder).eval()
    return AdaptedModel(finish(model, config, plan), load_processor(config), config)

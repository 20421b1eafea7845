"""Loading: the processor, the 4-bit base, and the LoRA adapter on top. Every fold starts from a fresh base."""

import dataclasses
import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from vqa_utils.artifacts import ArtifactError, read_json, write_json
from vqa_utils.config import DEMO_MODEL_NAME, NOT_OF_THE_ADAPTER, Config, from_dict, size_in_bytes, to_dict
from vqa_utils.paths import CONFIG_BESIDE_ADAPTER, DEMO_MODEL
from vqa_utils.quantize import nf4_config

LANGUAGE_MODEL = r".*\blanguage_model\..*"  # the vision tower has layers of the same names


def model_path(config: Config) -> str:
    """The base's folder or its name on the hub."""
    return str(DEMO_MODEL) if config.model == DEMO_MODEL_NAME else config.model


def load_processor(config: Config) -> ProcessorMixin:
    """The tokenizer, the image processor and the chat template of the base."""
    return AutoProcessor.from_pretrained(model_path(config))


def compute_dtype(config: Config) -> torch.dtype:
    """fp16 on a GPU (a T4 has no bf16, whatever `torch.cuda.is_bf16_supported` says), fp32 on a CPU."""
    return torch.float16 if torch.cuda.is_available() and config.use_amp else torch.float32


def load_base(config: Config) -> PreTrainedModel:
    """The base model, frozen, quantised while it is read, spread over the GPUs (or on the CPU)."""
    dtype = compute_dtype(config)
    quantization = nf4_config(dtype, config.use_double_quant) if config.quantization == "nf4" else None
    placement = {"device_map": {"": "cpu"}}
    if torch.cuda.is_available():
        limits = {gpu: size_in_bytes(size) for gpu, size in enumerate(config.max_memory)}
        placement = {"device_map": config.device_map, "max_memory": limits or None}
    model = AutoModelForImageTextToText.from_pretrained(
        model_path(config), dtype=dtype, quantization_config=quantization, attn_implementation="sdpa", **placement
    )
    model.config.use_cache = model.config.get_text_config().use_cache = False
    return model.requires_grad_(False).eval()


def add_lora(model: PreTrainedModel, config: Config) -> PeftModel:
    """New LoRA layers, in fp32, on the language model's `target_modules`; with gradient checkpointing where it is asked for.

    Raises:
        ValueError: the model has no linear layer of one of these names there.
    """
    names = [name for name, _ in model.named_modules() if re.fullmatch(LANGUAGE_MODEL, name)]
    missing = [target for target in config.target_modules if not any(name.endswith(f".{target}") for name in names)]
    if missing:
        raise ValueError(f"target_modules: expected layers of the language model, found none named {', '.join(missing)}")
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=rf"{LANGUAGE_MODEL}\.({'|'.join(map(re.escape, config.target_modules))})",
    )
    torch.manual_seed(config.seed)
    if config.use_gradient_checkpointing:
        # transformers 5.23 renamed the method; 5.17 has the old name alone
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return get_peft_model(model, lora)  # casts fp16 adapters to fp32: a GradScaler cannot unscale fp16 gradients


def save_adapter(model: PeftModel, config: Config, folder: Path) -> None:
    """The adapter in safetensors, with the run's settings beside it."""
    model.save_pretrained(folder)
    write_json(folder / CONFIG_BESIDE_ADAPTER, to_dict(config))


def load_adapter(folder: Path, run: Config) -> tuple[PeftModel, ProcessorMixin, Config]:
    """A fresh base with a trained adapter on it, as the settings beside the adapter say.

    Args:
        run: where an adapter does not depend on a setting (data, memory limits, batch of the scoring), this one's is used.

    Raises:
        ArtifactError: no trained adapter lies in `folder`.
    """
    if not (folder / CONFIG_BESIDE_ADAPTER).exists():
        raise ArtifactError(f"{folder}: expected a trained adapter, found none; run notebook 03_train_fold first")
    of_the_run = {name: getattr(run, name) for name in NOT_OF_THE_ADAPTER}
    config = dataclasses.replace(from_dict(read_json(folder / CONFIG_BESIDE_ADAPTER)), **of_the_run)
    model = PeftModel.from_pretrained(load_base(config), folder).eval()
    return model, load_processor(config), config

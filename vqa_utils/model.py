"""Loading: the processor, the 4-bit base, and the LoRA adapter on top. Every fold starts from a fresh base."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from vqa_utils.artifacts import ArtifactError, read_json, write_json
from vqa_utils.config import DEMO_MODEL_NAME, NOT_OF_THE_ADAPTER, Config, from_dict, to_dict
from vqa_utils.loaded import check_loaded
from vqa_utils.machine import Gpu, check_machine, gpu_limits, plan_for
from vqa_utils.paths import CONFIG_BESIDE_ADAPTER, DEMO_MODEL
from vqa_utils.precision import keep_stream_in_fp32
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


def placement(config: Config) -> dict[str, Any]:
    """Where the weights go: transformers' `device_map`, and what accelerate may use where that is not the plan's.

    Raises:
        MachineError: the plan says that the model does not fit.
    """
    if not torch.cuda.is_available():
        return {"device_map": {"": "cpu"}}
    gpus = [
        Gpu(p.name, p.total_memory / 2**30) for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    if config.device_map != "plan":
        return {"device_map": config.device_map, "max_memory": dict(enumerate(gpu_limits(config, gpus)))}
    check_machine(config, gpus)
    return {"device_map": plan_for(config, gpus).device_map}


def loading_options(config: Config, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """What `from_pretrained` is told: the arithmetic's type, how weights are packed, where they go.

    Args:
        dtype: `compute_dtype` where it is not given.
    """
    dtype = dtype or compute_dtype(config)
    quantization = nf4_config(dtype, config.use_double_quant) if config.quantization == "nf4" else None
    options = {"dtype": dtype, "quantization_config": quantization, "attn_implementation": "sdpa", "use_safetensors": True}
    return options | placement(config)


def load_base(config: Config, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The base model, frozen, quantised while it is read, spread over the GPUs (or on the CPU).

    Raises:
        MachineError: the plan says that it does not fit.
        LoadError: it was not loaded as planned.
    """
    model = AutoModelForImageTextToText.from_pretrained(model_path(config), **loading_options(config, dtype))
    return finish_base(model, config)


def finish_base(model: PreTrainedModel, config: Config) -> PreTrainedModel:
    """What every base goes through once its weights are there: checked, frozen, safe in fp16."""
    model.config.use_cache = model.config.get_text_config().use_cache = False
    if model.dtype == torch.float16:
        keep_stream_in_fp32(model)
    check_loaded(model, config)
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

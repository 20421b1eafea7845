"""Loading: the processor, the 4-bit base, and the LoRA adapter on top. Every fold starts from a fresh base."""

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import cached_file

from vqa_utils.artifacts.files import ArtifactError, read_json, write_json
from vqa_utils.artifacts.paths import CONFIG_BESIDE_ADAPTER, DEMO_MODEL
from vqa_utils.config import DEMO_MODEL_NAME, NOT_OF_THE_ADAPTER, Config, from_dict, to_dict
from vqa_utils.model._quantized_copy import cache_key, copy_folder, is_whole, new_copy
from vqa_utils.model.fast._attention import use_fast_attention
from vqa_utils.model.fast._layer import use_fast_layers
from vqa_utils.model.fast._lora import use_fast_lora
from vqa_utils.model.fast._padding import pad_on_the_right
from vqa_utils.model.fast._vision import batch_images
from vqa_utils.model.fp16 import keep_residual_stream_in_fp32
from vqa_utils.model.loading_check import check_loaded
from vqa_utils.model.nf4.quantizer import nf4_config, offloading
from vqa_utils.planning.gpus import Gpu, gpu_limits
from vqa_utils.planning.machine_check import check_machine
from vqa_utils.planning.memory import weights_by_module
from vqa_utils.planning.plan import Plan, plan_for
from vqa_utils.planning.shapes import shape_of

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


def memory_plan(config: Config) -> Plan | None:
    """The plan on the GPUs that torch sees; None on a CPU, or where accelerate places the model.

    Raises:
        MachineError: the model does not fit.
    """
    if not torch.cuda.is_available() or config.device_map != "plan":
        return None
    check_machine(config, _gpus())
    return plan_for(config, _gpus())


def loading_options(
    config: Config, plan: Plan | None, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """What `from_pretrained` is told: the arithmetic's type, how weights are packed, where they go.

    Args:
        dtype: `compute_dtype` where it is not given.
    """
    dtype = dtype or compute_dtype(config)
    quantization = (
        nf4_config(dtype, config.use_double_quant) if config.quantization == "nf4" else None
    )
    options = {
        "dtype": dtype,
        "quantization_config": quantization,
        "attn_implementation": "sdpa",
        "use_safetensors": True,
    }
    if plan:
        return options | {"device_map": plan.device_map}
    if torch.cuda.is_available():
        return options | {
            "device_map": config.device_map,
            "max_memory": dict(enumerate(gpu_limits(config, _gpus()))),
        }
    return options | {"device_map": {"": "cpu"}}


def load_base(config: Config, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The base model, frozen, quantised while it is read, spread over the GPUs (or on the CPU).

    What was quantised is kept under `cache_dir`, where the next fold finds it.

    Raises:
        MachineError: the plan says that it does not fit.
        LoadError: it was not loaded as planned.
    """
    plan, source = memory_plan(config), model_path(config)
    copy = _kept_copy(config, str(dtype or compute_dtype(config)))
    options = loading_options(config, plan, dtype)
    with offloading(plan.offloaded_layers if plan else ()):
        if copy and is_whole(copy):
            del options["quantization_config"]  # the copy has its own
            model = AutoModelForImageTextToText.from_pretrained(copy, **options)
            model.name_or_path = source
            return finish_base(model, config, plan)
        model = AutoModelForImageTextToText.from_pretrained(source, **options)
    if copy and not (plan and plan.offloaded_layers):
        _keep(model, copy)
    return finish_base(model, config, plan)


def finish_base(
    model: PreTrainedModel, config: Config, plan: Plan | None = None
) -> PreTrainedModel:
    """What every base goes through once its weights are there: safe in fp16, checked against the plan, frozen."""
    model.config.use_cache = model.config.get_text_config().use_cache = False
    if model.dtype == torch.float16:
        keep_residual_stream_in_fp32(model)
    batch_images(model)
    use_fast_attention(model)
    pad_on_the_right(model)
    check_loaded(model, config, plan.offloaded_layers if plan else ())
    return model.requires_grad_(False).eval()


def _kept_copy(config: Config, dtype: str) -> Path | None:
    """The folder of the quantised copy of these settings, whether it is there or not; None where none is kept."""
    if config.quantization != "nf4" or config.cache_dir == "" or config.device_map != "plan":
        return None
    packed = sum(
        sum(groups.values()) for groups in weights_by_module(shape_of(config), config).values()
    )
    source = Path(cached_file(model_path(config), "config.json")).parent
    name = f"{Path(model_path(config)).name}-{cache_key(config, source, dtype)}"
    return copy_folder(config, name, packed)


def _keep(model: PreTrainedModel, copy: Path) -> None:
    """Save the packed weights; a disk that is full costs the copy alone."""
    try:
        with new_copy(copy) as draft:
            model.save_pretrained(draft, save_original_format=False, max_shard_size="2GB")
    except OSError as error:
        warnings.warn(
            f"{copy}: the quantised weights were not kept ({error}); the next fold reads the whole model",
            stacklevel=2,
        )


def _gpus() -> list[Gpu]:
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [Gpu(gpu.name, gpu.total_memory / 2**30) for gpu in found]


def add_lora(model: PreTrainedModel, config: Config) -> PeftModel:
    """New LoRA layers, in fp32, on the language model's `target_modules`; with gradient checkpointing as the plan says.

    Raises:
        ValueError: the model has no linear layer of one of these names there.
    """
    names = [name for name, _ in model.named_modules() if re.fullmatch(LANGUAGE_MODEL, name)]
    missing = [
        target
        for target in config.target_modules
        if not any(name.endswith(f".{target}") for name in names)
    ]
    if missing:
        raise ValueError(
            f"target_modules: expected layers of the language model, found none named {', '.join(missing)}"
        )
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=rf"{LANGUAGE_MODEL}\.({'|'.join(map(re.escape, config.target_modules))})",
    )
    torch.manual_seed(config.seed)
    enable_checkpointing(model, config)
    adapted = get_peft_model(
        model, lora
    )  # casts fp16 adapters to fp32: a GradScaler cannot unscale fp16 gradients
    _end_backward_at_language_model(model)
    use_fast_lora(adapted)
    use_fast_layers(adapted)
    return adapted


def enable_checkpointing(model: PreTrainedModel, config: Config) -> None:
    """Gradient checkpointing of the decoder layers that the settings, or under "auto" the memory plan, do not keep."""
    plan = memory_plan(config)
    without_plan = config.use_gradient_checkpointing == "auto" and not plan
    if config.use_gradient_checkpointing is False or (without_plan and model.device.type == "cpu"):
        return
    # transformers 5.23 renamed the method; 5.17 has the old name alone
    enable = (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})
    for name in plan.uncheckpointed_layers if plan else ():
        model.get_submodule(name).gradient_checkpointing = False


def _end_backward_at_language_model(model: PreTrainedModel) -> None:
    """Nothing before the first LoRA layer needs a gradient: not the embeddings, and not the vision tower.

    Checkpointing comes with hooks that make the inputs of both ask for one (its older variant needs that); left alone, each
    step recomputes the whole tower and goes backward through it, for nothing.
    """
    model.disable_input_require_grads()
    for name, module in model.named_modules():
        if "visual" in name and hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False


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
        raise ArtifactError(
            f"{folder}: expected a trained adapter, found none; run notebook 03_train_fold first"
        )
    of_the_run = {name: getattr(run, name) for name in NOT_OF_THE_ADAPTER}
    config = dataclasses.replace(from_dict(read_json(folder / CONFIG_BESIDE_ADAPTER)), **of_the_run)
    model = PeftModel.from_pretrained(load_base(config), folder).eval()
    use_fast_lora(model)
    use_fast_layers(model)
    return model, load_processor(config), config

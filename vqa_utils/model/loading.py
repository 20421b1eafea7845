"""Load the processor, the 4-bit base, and the LoRA adapter on top.

Every fold starts from a fresh base.
"""

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import cached_file

from vqa_utils.artifacts.files import ArtifactError, read_json, settings_of, write_json
from vqa_utils.artifacts.paths import CONFIG_BESIDE_ADAPTER, DEMO_MODEL
from vqa_utils.config import DEMO_MODEL_NAME, NOT_OF_THE_ADAPTER, Config, to_dict
from vqa_utils.model._quantized_copy import cache_key, copy_folder, is_whole, new_copy
from vqa_utils.model.fast.table import When, use_fast_forwards
from vqa_utils.model.fp16 import keep_residual_stream_in_fp32
from vqa_utils.model.hand_over import use_turns
from vqa_utils.model.lending.attach import attached
from vqa_utils.model.loading_check import LoadError, check_loaded
from vqa_utils.model.nf4.quantizer import nf4_config, offloading
from vqa_utils.planning.gpus import find_gpus, gpu_limits
from vqa_utils.planning.memory import weights_by_module
from vqa_utils.planning.plan import Plan, memory_plan
from vqa_utils.planning.shapes import shape_of
from vqa_utils.sharing.client import is_shared

LANGUAGE_MODEL = r".*\blanguage_model\..*"  # the vision tower has layers of the same names
SHARD_SIZE = "2GB"  # of a kept copy: the loader reads shard after shard


class AdaptedModel(NamedTuple):
    """A base with a trained adapter, and what belongs to it."""

    model: PeftModel
    processor: ProcessorMixin
    config: Config


def model_path(config: Config) -> str:
    """Return the base's folder, or its name on the hub."""
    return str(DEMO_MODEL) if config.model == DEMO_MODEL_NAME else config.model


def load_processor(config: Config) -> ProcessorMixin:
    """Load the tokenizer, the image processor and the chat template of the base."""
    return AutoProcessor.from_pretrained(model_path(config))


def compute_dtype(config: Config) -> torch.dtype:
    """Return fp16 on a GPU, fp32 on a CPU.

    A T4 has no bf16, whatever `torch.cuda.is_bf16_supported` says.
    """
    return torch.float16 if torch.cuda.is_available() and config.use_amp else torch.float32


def loading_options(
    config: Config, plan: Plan | None, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Choose the arguments of `from_pretrained`: the arithmetic's type, the packing, the devices.

    Args:
        plan: the memory plan; None on a CPU, or where accelerate places the model.
        dtype: `compute_dtype` unless it is given.

    Raises:
        LoadError: a GPU without a plan, or a plan for GPUs that torch cannot use.
    """
    places = plan.device_map.values() if plan else ()
    planned_gpus = {place for place in places if place != "cpu"}
    if planned_gpus and not torch.cuda.is_available():
        raise LoadError(
            f"expected a torch that can use this machine's {len(planned_gpus)} planned GPUs, found "
            f"torch {torch.__version__}, which cannot; install its CUDA build for this driver, or "
            "set the environment variable CUDA_VISIBLE_DEVICES to nothing to run on the CPU"
        )
    dtype = dtype or compute_dtype(config)
    options: dict[str, Any] = {
        "dtype": dtype,
        "quantization_config": None,
        "attn_implementation": "sdpa",
        "use_safetensors": True,
    }
    if config.quantization == "nf4":
        options["quantization_config"] = nf4_config(dtype, config.use_double_quant)
    if plan is not None:
        options["device_map"] = plan.device_map
    elif not torch.cuda.is_available():
        options["device_map"] = {"": "cpu"}
    elif config.device_map == "plan":
        raise LoadError(
            f"expected a memory plan for this machine's {torch.cuda.device_count()} GPUs, "
            "found none, as nvidia-smi lists no GPU; "
            "--set device_map=auto leaves the placement to accelerate"
        )
    else:
        options["device_map"] = config.device_map
        options["max_memory"] = dict(enumerate(gpu_limits(config, find_gpus())))  # bytes, by GPU
    return options


def load_base(
    config: Config, plan: Plan | None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Load the base, frozen, packed as the settings say, spread over the GPUs (or on the CPU).

    A run of several folds loads it once and lends it to each: model/lending.

    Args:
        plan: of `memory_plan`.
        dtype: `compute_dtype` unless it is given.

    Raises:
        LoadError: the model was not loaded as planned.
    """
    base = None
    if plan is None or not plan.offloaded_layers:
        key = base_key(config, dtype or compute_dtype(config))
        base = attached(key, loading_options(config, plan, dtype), model_path(config))
    if base is None:
        base = load_packed(config, plan, dtype)
    return finish(base, config, plan)


def base_key(config: Config, dtype: torch.dtype) -> str:
    """Name all that the base's weights depend on."""
    packing = "double" if config.use_double_quant else "single"
    return f"{model_path(config)} {config.quantization} {packing} {dtype}"


def load_packed(
    config: Config, plan: Plan | None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Load the base, quantised while it is read, in the state in which transformers leaves it.

    What was quantised is kept under `cache_dir`, and the next load reads it from there.
    """
    source = model_path(config)
    copy = _kept_copy(config, str(dtype or compute_dtype(config)))
    options = loading_options(config, plan, dtype)
    offloaded = plan.offloaded_layers if plan else []
    from_copy = copy is not None and is_whole(copy)
    if from_copy:
        del options["quantization_config"]  # the copy has its own
    with offloading(offloaded):
        model = AutoModelForImageTextToText.from_pretrained(
            copy if from_copy else source, **options
        )
    if from_copy:
        model.name_or_path = source  # the adapter names its base by this
    elif copy is not None and not offloaded:
        # Not with offloaded layers, as their modules have empty tensors in place of experts
        _keep(model, copy)
    return model


def finish(model: Any, config: Config, plan: Plan | None) -> Any:
    """Take a model from transformers' state to ours: the base, and later the base with LoRA on it.

    The whole way of a model, in its order:

        from_pretrained       packed to 4 bits while it is read: nf4/quantizer.py
        finish(base)          below
        enable_checkpointing  in the decoder layers that the plan does not keep
        get_peft_model        LoRA, in fp32
        finish(adapted)       below; turns on the GPUs, if folds share them

    Args:
        model: the base, or a PeftModel around it.
    """
    if isinstance(model, PeftModel):
        # Last: LoRA's products stand on PEFT's layers, and a decoder layer's forward on those and
        # on checkpointing
        use_fast_forwards(model, When.ON_THE_ADAPTED_MODEL)
        if plan is not None and len(plan.gpus) > 1 and not plan.offloaded_layers:
            use_turns(model, plan, with_folds=config.sharing_folds > 1 and is_shared())
        return model
    model.config.use_cache = model.config.get_text_config().use_cache = (
        False  # nothing is generated
    )
    if model.dtype == torch.float16:
        # First: the check counts fp32 norms, and hooks of this kind stay around the fast forwards
        keep_residual_stream_in_fp32(model)
    use_fast_forwards(model, When.ON_THE_BASE)
    check_loaded(model, config, plan)  # before an hour is spent on the model
    return model.requires_grad_(False).eval()


def _kept_copy(config: Config, dtype: str) -> Path | None:
    """Return the folder of these settings' quantised copy, made or not; None where none is kept."""
    if config.quantization != "nf4" or config.cache_dir == "" or config.device_map != "plan":
        return None
    packed = 0  # bytes
    for groups in weights_by_module(shape_of(config), config).values():
        packed += sum(groups.values())
    source = Path(cached_file(model_path(config), "config.json")).parent
    name = f"{Path(model_path(config)).name}-{cache_key(config, source, dtype)}"
    return copy_folder(config, name, packed)


def _keep(model: PreTrainedModel, copy: Path) -> None:
    """Save the packed weights; a full disk costs the copy alone."""
    try:
        with new_copy(copy) as draft:
            # In the model's own layout: packed tensors cannot go back to the checkpoint's
            model.save_pretrained(draft, save_original_format=False, max_shard_size=SHARD_SIZE)
    except OSError as error:
        warnings.warn(
            f"{copy}: the quantised weights were not kept ({error}); "
            "the next fold reads the whole model",
            stacklevel=2,
        )


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
    write_json(folder / CONFIG_BESIDE_ADAPTER, to_dict(config))


def load_adapter(folder: Path, run_config: Config, plan: Plan | None = None) -> AdaptedModel:
    """Load a fresh base with a trained adapter on it, as the settings beside the adapter say.

    Args:
        folder: the adapter's.
        run_config: the run's settings; they count where an adapter does not depend on them (data,
            memory limits, batch of the scoring).
        plan: of `run_config`; None on a CPU. Made again if the adapter's settings are others.

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
    model = PeftModel.from_pretrained(load_base(config, plan), folder).eval()
    return AdaptedModel(finish(model, config, plan), load_processor(config), config)

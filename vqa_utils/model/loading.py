"""Load the processor and the 4-bit base, and finish a model for training and scoring."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import cached_file

from vqa_utils.artifacts.paths import DEMO_MODEL
from vqa_utils.config import DEMO_MODEL_NAME, Config
from vqa_utils.model._quantized_copy import cache_key, copy_folder, is_whole, new_copy
from vqa_utils.model.cache_folders import cache_folder, source_key
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.fast._attention import use_repeated_heads
from vqa_utils.model.fast.table import When, use_fast_forwards
from vqa_utils.model.features.encoding import Pictures, store_features
from vqa_utils.model.features.store import FeatureStore
from vqa_utils.model.fp16 import keep_residual_stream_in_fp32
from vqa_utils.model.hand_over import use_turns
from vqa_utils.model.lending.attach import attached
from vqa_utils.model.loading_check import LoadError, check_loaded
from vqa_utils.model.nf4.experts import NF4Experts
from vqa_utils.model.nf4.quantizer import nf4_config, offloading
from vqa_utils.ops.launch import compile_ahead
from vqa_utils.planning.images import feature_bytes
from vqa_utils.planning.machine.gpus import find_gpus, gpu_limits
from vqa_utils.planning.memory import weights_by_module
from vqa_utils.planning.plan import Plan
from vqa_utils.planning.shapes import shape_of
from vqa_utils.planning.source.check import check_packing, is_packed, source_of
from vqa_utils.sharing.client import is_shared

FEATURES_FORMAT = 2  # to be raised when pictures or the tower's forward change
# That decide how a picture looks, and what the tower makes of it
OF_FEATURES = ("pillow", "qwen-vl-utils", "torch", "transformers")
SHARD_SIZE = "2GB"  # of a kept copy: the loader reads shard after shard


def model_path(config: Config) -> str:
    """Return the base's folder, or its name on the hub."""
    source = source_of(config)
    return str(DEMO_MODEL) if source == DEMO_MODEL_NAME else source


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
    config: Config,
    plan: Plan | None,
    pictures: Pictures | None = None,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """Load the base, frozen, packed as the settings say, spread over the GPUs (or on the CPU).

    A run of several folds loads it once and lends it to each: model/lending.

    Args:
        plan: of `memory_plan`.
        pictures: all that it will be shown, for `cache_features`; without them it has its vision
            tower in any case.
        dtype: `compute_dtype` unless it is given.

    Raises:
        LoadError: the model was not loaded as planned.
    """
    dtype = dtype or compute_dtype(config)
    compile_ahead(dtype)
    base = None
    if plan is None or not plan.offloaded_layers:
        store = feature_store(config, dtype, pictures)
        key = base_key(config, dtype, store)
        base = attached(key, loading_options(config, plan, dtype), model_path(config), store)
    if base is None:
        base = with_features(load_packed(config, plan, dtype), config, pictures)
    return finish(base, config, plan)


def base_key(config: Config, dtype: torch.dtype, store: FeatureStore | None = None) -> str:
    """Name all that the base's weights depend on.

    Args:
        config: the settings of the run.
        dtype: of what is not packed.
        store: in place of the vision tower.
    """
    packing = "double" if config.use_double_quant else "single"
    tower = "with its tower" if store is None else store.folder.name
    return f"{model_path(config)} {config.quantization} {packing} {dtype} {tower}"


def load_packed(
    config: Config, plan: Plan | None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Load the base, quantised while it is read, in the state in which transformers leaves it.

    What was quantised is kept under `cache_dir`, and the next load reads it from there.

    Args:
        plan: as of `load_base`.
        dtype: `compute_dtype` unless it is given.
    """
    source = model_path(config)
    is_prepared = is_packed(source)
    copy = None if is_prepared else _kept_copy(config, str(dtype or compute_dtype(config)))
    options = loading_options(config, plan, dtype)
    offloaded = plan.offloaded_layers if plan else []
    from_copy = copy is not None and is_whole(copy)
    check_packing(config, on_gpu=torch.cuda.is_available())
    if from_copy or is_prepared:
        del options["quantization_config"]  # they have their own
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


def with_features(
    model: PreTrainedModel, config: Config, pictures: Pictures | None
) -> PreTrainedModel:
    """Put the features of pictures in the vision tower's place, with `cache_features`.

    Args:
        model: of `load_packed`.
        config: the settings of the run.
        pictures: as of `load_base`.
    """
    store = feature_store(config, model.dtype, pictures)
    if store is not None and pictures is not None:
        processor = load_processor(config)
        encoder = Encoder(processor, pictures.folder, config.image_side, config.prompt)
        store_features(model, store, pictures, encoder, config)
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
    for module in model.modules():
        if isinstance(module, NF4Experts) and plan is not None:
            module.at_once = plan.experts_at_once
    use_repeated_heads(model)  # for attention that has no fast forward
    use_fast_forwards(model, When.ON_THE_BASE)
    check_loaded(model, config, plan)  # before an hour is spent on the model
    return model.requires_grad_(False).eval()


def feature_store(
    config: Config, dtype: torch.dtype, pictures: Pictures | None
) -> FeatureStore | None:
    """Return the place of pictures' features; None where the vision tower makes them in each pass.

    Args:
        config: the settings of the run.
        dtype: of the features.
        pictures: of the run.

    Raises:
        LoadError: no disk has room for them.
    """
    if not config.caches_features or pictures is None:
        return None
    source = _source_folder(config)
    made_with = [str(dtype), config.image_side, config.crops, FEATURES_FORMAT]
    key = source_key(source, made_with, OF_FEATURES)
    name = f"{Path(model_path(config)).name}-features-{config.image_side}px-{key}"
    size = len(pictures.paths) * feature_bytes(shape_of(config), config)
    folder = cache_folder(config, name, size, Path.is_dir)
    if folder is None:
        raise LoadError(
            f"cache_features: expected a disk with room for {size / 10**9:.1f} GB of features of "
            f"{len(pictures.paths):,} pictures, found none with cache_dir={config.cache_dir!r}; "
            "--set cache_dir=FOLDER names another, and --set cache_features=false runs the vision "
            "tower in each pass"
        )
    return FeatureStore(folder)


def _source_folder(config: Config) -> Path:
    """Return the folder of the checkpoint, in the hub's cache for a name on the hub."""
    return Path(cached_file(model_path(config), "config.json")).parent


def _kept_copy(config: Config, dtype: str) -> Path | None:
    """Return the folder of these settings' quantised copy, made or not; None where none is kept."""
    if config.quantization != "nf4" or config.cache_dir == "" or config.device_map != "plan":
        return None
    packed = 0  # bytes
    for groups in weights_by_module(shape_of(config), config).values():
        packed += sum(groups.values())
    source = _source_folder(config)
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

"""Refuse a model without complete files in a folder or on the hub; read its config.json."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from vqa_utils.artifacts.paths import DEMO_MODEL
from vqa_utils.artifacts.places import located
from vqa_utils.config import DEMO_MODEL_NAME, QWEN3_30B, Config
from vqa_utils.errors import counted
from vqa_utils.nf4_format import METHOD
from vqa_utils.planning.source._folder import (
    TOKENIZER,
    folder_problems,
    missing_kinds,
    read_object,
)
from vqa_utils.planning.source._hub import CONFIG, SourceError, cached, downloaded, hub_files

NEVER_PUBLISHED = re.compile(r"qwen/qwen2\.5-vl-30b", re.IGNORECASE)
HUB_NAME = re.compile(r"[^/\s]+/[^/\s]+")


def source_of(config: Config) -> str:
    """Return where a run's model is: a folder, a name on the hub, or "demo"."""
    return config.model_dir or located(config.model)


def check_source(model: str) -> None:
    """Refuse a model with missing or torn files. Read headers of weights only; download nothing.

    Args:
        model: a local folder, a name on the hub, or "demo".

    Raises:
        SourceError: with all missing and torn files and other formats; or with the hub's reason
            not to give the model.
    """
    if model == DEMO_MODEL_NAME:
        return
    folder = _folder(model)
    problems = folder_problems(folder) if folder else _hub_problems(model)
    _raise_any(model, problems)


def config_of(model: str) -> dict[str, Any]:
    """Read the model's config.json from its folder or the hub's cache; download it if needed.

    Args:
        model: a local folder, a name on the hub, or "demo".

    Raises:
        SourceError: it is not there, is no JSON or names no model_type; or the hub does not
            give it.
    """
    problems: list[str] = []
    folder = DEMO_MODEL if model == DEMO_MODEL_NAME else _folder(model)
    if folder is None:
        folder = downloaded(model).parent
    config = read_object(folder / CONFIG, "model_type", str, problems)
    _raise_any(model, problems)
    return config or {}


def is_packed(model: str) -> bool:
    """Tell whether a model's weights are in 4 bits already, as `prepare` writes them."""
    packing = config_of(model).get("quantization_config")
    return isinstance(packing, dict) and packing.get("quant_method") == METHOD


def check_packing(config: Config, *, on_gpu: bool) -> None:
    """Refuse a packed model whose weights are not as the settings would pack them here.

    Raises:
        SourceError: with both.
    """
    source = source_of(config)
    if not is_packed(source):
        return
    content = config_of(source)
    packing = content["quantization_config"]
    wanted = {
        "quantization": config.quantization,
        "use_double_quant": config.use_double_quant,
        "the rest in": "float16" if on_gpu and config.use_amp else "float32",
    }
    found = {
        "quantization": "nf4",
        "use_double_quant": packing.get("bnb_4bit_use_double_quant"),
        "the rest in": content.get("dtype"),
    }
    if found != wanted:
        hint = "" if on_gpu else ", with --set use_amp=false for a CPU"
        raise SourceError(
            f"{source}: expected {_listed(wanted)}, found a packed model with {_listed(found)}; "
            f"`python run_all.py prepare` packs it again{hint}"
        )


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def tokenizer_of(model: str) -> Path | None:
    """Find the model's tokenizer.json; None if it has none, or the hub does not give it.

    Raises:
        SourceError: it is torn.
    """
    if model == DEMO_MODEL_NAME:
        return DEMO_MODEL / TOKENIZER
    try:
        folder = _folder(model)
        file = folder / TOKENIZER if folder else downloaded(model, TOKENIZER)
    except SourceError:  # the check of the source says so
        return None
    if not file.is_file():
        return None
    problems: list[str] = []
    read_object(file, "model", dict, problems)
    _raise_any(model, problems)
    return file


def folder_of(model: str) -> Path | None:
    """Return the folder with all files of a model; None where they are not here.

    Args:
        model: a local folder, a name on the hub, or "demo".
    """
    if model == DEMO_MODEL_NAME:
        return DEMO_MODEL
    try:
        folder = _folder(model)
        if folder is None:
            file = cached(model)
            folder = file.parent if file else None
    except SourceError:  # it is nowhere, and the check says so
        return None
    return folder if folder and not folder_problems(folder) else None


def _folder(model: str) -> Path | None:
    """Return the folder of the name; None for a name on the hub.

    Raises:
        SourceError: it is neither.
    """
    folder = Path(model)
    with suppress(RuntimeError):  # ~NAME of no user
        folder = folder.expanduser()
    if model and folder.is_dir():
        return folder
    # The name has a valid form, and the hub would only say that it is unknown
    if NEVER_PUBLISHED.match(model):
        raise SourceError(
            f"{model}: expected a published model, "
            "found a name that circulates in guides and does not exist "
            f"(Qwen2.5-VL has 3B, 7B, 32B and 72B); {QWEN3_30B} is the one that is meant"
        )
    if model.startswith((".", "~")) or not HUB_NAME.fullmatch(model):
        found = "no such folder; check the name, or where it has moved, pass the new one"
        if folder.is_file():
            found = "a file; pass the folder that it is in"
        raise SourceError(
            f"--model {model!r}: expected a model's folder, or OWNER/NAME on the hub, found {found}"
        )
    return None


def _hub_problems(model: str) -> list[str]:
    """Describe the problems of a model on the hub; a complete copy in the cache has none."""
    file = cached(model)
    if file and not folder_problems(file.parent):
        return []
    return missing_kinds(hub_files(model), model)


def _raise_any(model: str, problems: list[str]) -> None:
    if len(problems) == 1:
        raise SourceError(f"{model}: {problems[0]}")
    if problems:
        raise SourceError(counted(model, problems))

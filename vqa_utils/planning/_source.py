"""Whether a model can be loaded, before any GPU time is spent: its folder is whole, or the hub has it for us."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import DEMO_MODEL
from vqa_utils.config import DEMO_MODEL_NAME, QWEN3_30B
from vqa_utils.planning._hub import CONFIG, SourceError, cached, downloaded, hub_files

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BESIDE_THE_WEIGHTS = (
    ("preprocessor_config.json", "processor_config.json"),
    ("tokenizer.json", "vocab.json"),
)
NEVER_PUBLISHED = re.compile(r"qwen/qwen2\.5-vl-30b", re.IGNORECASE)
NO_FILE = "no such file; get a whole model in the format of transformers"
LONGEST_HEADER = 100_000_000  # bytes; safetensors refuses a longer one


def check_source(model: str) -> None:
    """Say at once that a model cannot be loaded; of its weights, only the headers are read, and nothing is downloaded.

    Args:
        model: a local folder, a name on the hub, or "demo".

    Raises:
        SourceError: with every file of a folder that is missing, torn or of another format; or why the hub does not give it.
    """
    if model == DEMO_MODEL_NAME:
        return
    folder = _folder(model)
    _raise_any(model, _folder_problems(folder) if folder else _hub_problems(model))


def config_of(model: str) -> dict[str, Any]:
    """The model's config.json: from its folder, from the hub's cache, or downloaded into it.

    Args:
        model: a local folder, a name on the hub, or "demo".

    Raises:
        SourceError: it is not there, is no JSON or names no model_type; or the hub does not give it.
    """
    problems: list[str] = []
    folder = DEMO_MODEL if model == DEMO_MODEL_NAME else _folder(model) or downloaded(model)
    config = _read(folder / CONFIG, "model_type", str, problems)
    _raise_any(model, problems)
    return config


def _folder(model: str) -> Path | None:
    """The folder that a name stands for; None for a name on the hub."""
    folder = Path(model)
    with suppress(RuntimeError):  # ~NAME of no user
        folder = folder.expanduser()
    if model and folder.is_dir():
        return folder
    if NEVER_PUBLISHED.match(model):
        raise SourceError(
            f"{model}: expected a published model, found a name that circulates in guides and does not exist "
            f"(Qwen2.5-VL has 3B, 7B, 32B and 72B); {QWEN3_30B} is the one that is meant"
        )
    if model.startswith((".", "~")) or not re.fullmatch(r"[^/\s]+/[^/\s]+", model):
        found = (
            "a file; pass the folder that it is in"
            if folder.is_file()
            else "no such folder; check the name"
        )
        raise SourceError(
            f"--model {model!r}: expected a model's folder, or OWNER/NAME on the hub, found {found}"
        )
    return None


def _folder_problems(folder: Path) -> list[str]:
    deeper = [file.parent for depth in (1, 2, 3) for file in folder.glob("*/" * depth + CONFIG)]
    if (
        deeper and not (folder / CONFIG).exists()
    ):  # a Kaggle input has folders for framework, variation and version
        return [f"expected {CONFIG}, found it in {deeper[0]}; pass that folder with --model"]
    problems: list[str] = []
    _read(folder / CONFIG, "model_type", str, problems)
    names = {file.name for file in folder.iterdir() if file.is_file()}
    problems += _absent(names, str(folder))
    shards = [WEIGHTS] if WEIGHTS in names else []  # transformers reads no index beside it
    if (
        not shards
        and INDEX in names
        and (index := _read(folder / INDEX, "weight_map", dict, problems))
    ):
        shards = sorted(set(index["weight_map"].values()))
    there = [shard for shard in shards if (folder / shard).is_file()]
    if missing := sorted(set(shards) - set(there)):
        listed = f"expected the {len(shards)} shards it lists, found {len(missing)} of them missing"
        problems.append(f"{INDEX}: {listed}: {', '.join(missing)}; download them again")
    return problems + [
        f"{shard}: {torn}; download it again" for shard in there if (torn := _torn(folder / shard))
    ]


def _absent(names: set[str], where: str) -> list[str]:
    """The kinds of file that a model is loaded from and that are not among `names`."""
    problems = []
    if names.isdisjoint((WEIGHTS, INDEX)):
        pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
        shards = sorted(
            name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)
        )
        found = f"only {', '.join(shards)}; get the index too" if shards else NO_FILE
        if pickles and not shards:
            found = (
                f"only pickles, which are not loaded ({', '.join(pickles)}); convert them: "
                f"AutoModelForImageTextToText.from_pretrained({where!r}).save_pretrained(NEW_DIR), "
                "and copy the tokenizer's and the processor's files there"
            )
        problems.append(f"expected {WEIGHTS} or {INDEX}, found {found}")
    wanted = [" or ".join(choice) for choice in BESIDE_THE_WEIGHTS if names.isdisjoint(choice)]
    return problems + [f"expected {choice}, found {NO_FILE}" for choice in wanted]


def _read(file: Path, key: str, kind: type, problems: list[str]) -> dict[str, Any] | None:
    """A JSON object with a `kind` at `key`; None where it is not to be had, and then why in `problems`."""
    try:
        value = read_json(file)
    except FileNotFoundError:
        problems.append(f"expected {file.name}, found {NO_FILE}")
    except ValueError as error:  # no JSON, or no UTF-8
        problems.append(
            f"{file.name}: expected JSON, found something else ({error}); download it again"
        )
    else:
        if isinstance(value, dict) and isinstance(value.get(key), kind) and value[key]:
            return value
        problems.append(
            f"{file.name}: expected a JSON object with {key}, found none; download it again"
        )
    return None


def _torn(file: Path) -> str | None:
    """What is wrong with a safetensors file: the header's length in 8 bytes, the header, the tensors without a gap.

    The format: https://huggingface.co/docs/safetensors/index#format
    """
    found = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if length <= LONGEST_HEADER else b""
    if 8 <= found < 8 + length <= 8 + LONGEST_HEADER:
        return f"expected more than {8 + length} bytes, found {found}"
    try:
        tensors = json.loads(header)
    except ValueError:
        return f"expected a safetensors header, found none in its {found} bytes (a Git LFS pointer has about 130)"
    ends = (tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__")
    expected = 8 + length + max(ends, default=0)
    return None if found == expected else f"expected {expected} bytes, found {found}"


def _hub_problems(model: str) -> list[str]:
    folder = cached(model)
    return [] if folder and not _folder_problems(folder) else _absent(hub_files(model), model)


def _raise_any(model: str, problems: list[str]) -> None:
    if len(problems) == 1:
        raise SourceError(f"{model}: {problems[0]}")
    if problems:
        raise SourceError(
            "\n".join(
                [f"{model}: {len(problems)} problems", *(f"  - {problem}" for problem in problems)]
            )
        )

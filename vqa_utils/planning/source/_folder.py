"""Find missing and torn files in a model's folder, and files of other formats."""

import json
import re
from pathlib import Path
from typing import Any

from vqa_utils.artifacts.files import TornFile, read_json
from vqa_utils.planning.source._hub import CONFIG

TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
PICKLES = (".bin", ".pt", ".pth")
# A model needs one file of each pair
BESIDE_THE_WEIGHTS = (
    ("preprocessor_config.json", "processor_config.json"),
    (TOKENIZER, "vocab.json"),
)
NO_FILE = "no such file; get a complete model in the format of transformers"
SMALL_FILE = 1000  # bytes; a Git LFS pointer has about 130
LFS_POINTER = b"version https://git-lfs"  # the beginning of one
MAX_HEADER = 100 * 2**20  # bytes; safetensors' own limit
METADATA = "__metadata__"  # the one entry of a header that is no tensor


def folder_problems(folder: Path) -> list[str]:
    """Describe each problem of a model's folder; of the weights, only the headers are read."""
    deeper = _deeper_models(folder)
    if deeper and not (folder / CONFIG).exists():
        return [f"expected {CONFIG}, found it in {deeper[0]}; pass that folder with --model"]
    problems: list[str] = []
    read_object(folder / CONFIG, "model_type", str, problems)
    names = {file.name for file in folder.iterdir() if file.is_file()}
    problems += missing_kinds(names, str(folder))
    if TOKENIZER in names:
        read_object(folder / TOKENIZER, "model", dict, problems)
    shards = _shards(folder, names, problems)
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        problems.append(
            f"{INDEX}: expected the {len(shards)} shards it lists, "
            f"found {len(missing)} of them missing: {', '.join(missing)}; download them again"
        )
    for shard in shards:
        if shard not in missing:
            problems += _torn(folder / shard)
    return problems


def _deeper_models(folder: Path) -> list[Path]:
    """Find models up to three folders below: a Kaggle input has framework, variation, version."""
    found = []
    for depth in (1, 2, 3):
        found += [file.parent for file in folder.glob("*/" * depth + CONFIG)]
    return found


def missing_kinds(names: set[str], source: str) -> list[str]:
    """Describe each kind of file missing in `names` and needed by a model.

    Args:
        names: the model's files.
        source: its folder, or its name on the hub.
    """
    problems = []
    if names.isdisjoint((WEIGHTS, INDEX)):
        found = _instead_of_weights(names, source)
        problems.append(f"expected {WEIGHTS} or {INDEX}, found {found}")
    for choice in BESIDE_THE_WEIGHTS:
        if names.isdisjoint(choice):
            problems.append(f"expected {' or '.join(choice)}, found {NO_FILE}")
    return problems


def _instead_of_weights(names: set[str], source: str) -> str:
    """Describe the files there instead of the weights."""
    shards = sorted(name for name in names if SHARD.fullmatch(name))
    if shards:
        return f"only {', '.join(shards)}; get the index too"
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        load = f"AutoModelForImageTextToText.from_pretrained({source!r})"
        return (
            f"only pickles, which are not loaded ({', '.join(pickles)}); "
            f"convert them: {load}.save_pretrained(NEW_DIR), "
            "and copy the tokenizer's and the processor's files there"
        )
    return NO_FILE


def _shards(folder: Path, names: set[str], problems: list[str]) -> list[str]:
    """List the files of weights, as transformers finds them."""
    if WEIGHTS in names:  # it reads no index beside it
        return [WEIGHTS]
    if INDEX not in names:
        return []
    # weight_map: each parameter's shard; many parameters share one
    index = read_object(folder / INDEX, "weight_map", dict, problems)
    return sorted(set(index["weight_map"].values())) if index else []


def read_object(file: Path, key: str, kind: type, problems: list[str]) -> dict[str, Any] | None:
    """Read a JSON object with a `kind` at `key`; without one, add to `problems` and return None."""
    try:
        value = read_json(file)
    except FileNotFoundError:
        problems.append(f"expected {file.name}, found {NO_FILE}")
        return None
    except TornFile as error:
        problems.append(
            f"{file.name}: expected JSON, found something else ({error.__cause__}); "
            "download it again"
        )
        return None
    if isinstance(value, dict) and isinstance(value.get(key), kind) and value[key]:
        return value
    problems.append(
        f"{file.name}: expected a JSON object with {key}, found none; download it again"
    )
    return None


def _torn(file: Path) -> list[str]:
    """Describe a safetensors file with a broken header, or of another size than its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):  # checks the header against the file's size
            return []
    except SafetensorError as error:
        start = file.read_bytes()[: len(LFS_POINTER)] if file.stat().st_size < SMALL_FILE else b""
        if start == LFS_POINTER:
            size = file.stat().st_size
            return [
                f"{file.name}: expected weights, found {size} bytes, a Git LFS pointer to them; "
                "run git lfs pull, or download it again"
            ]
        expected = _size_by_header(file)
        expected_text = "a complete safetensors file" if expected is None else f"{expected} bytes"
        return [
            f"{file.name}: expected {expected_text}, found {file.stat().st_size} bytes ({error}); "
            "download it again"
        ]


def _size_by_header(file: Path) -> int | None:
    """Return the bytes of a safetensors file by its own header; None if that is torn too.

    The file is the header's length (8 bytes, little-endian), the header in JSON, and the tensors.
    """
    with file.open("rb") as contents:
        length = int.from_bytes(contents.read(8), "little")
        # In a torn file, the length may be any 64-bit number
        header = contents.read(min(length, MAX_HEADER))
    try:
        tensors = json.loads(header)
        # [begin, end] in bytes after the header
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != METADATA]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return 8 + length + max(ends, default=0)

"""Know a run's model again where it lies in another folder."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqa_utils.artifacts.files import TornFile, read_json, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.places import located
from vqa_utils.config import Config
from vqa_utils.planning.source.check import SourceError, folder_of, source_of

# What prompts and pictures are made with; a model lacks some
FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
OF_LIBRARIES = ("transformers_version", "_name_or_path")
SAMPLES = 16  # of each file of weights
SAMPLE_BYTES = 2**16


def record_model(paths: RunPaths, config: Config) -> None:
    """Keep a hash of the model's files with the run, once they are here."""
    known = _known(paths)
    folder = None if config.model in known else folder_of(source_of(config))
    if folder is not None:
        write_json(paths.model, {**known, config.model: hash_of_model(folder)})


def with_changes(
    paths: RunPaths, config: Config, changes: dict[str, Any], *, is_named: bool
) -> Config:
    """Change a run's settings; another folder with its own model is the place of that alone.

    Args:
        paths: the run.
        config: its settings.
        changes: of them, by name.
        is_named: `model` is among them by its own option, and not by a preset.

    Raises:
        SourceError: `model_dir` has another model.
    """
    known = _known(paths).get(config.model)
    given = changes.get("model", config.model)
    if changes.get("model_dir"):
        _check_same(changes["model_dir"], config.model, known)
    elif given != config.model:
        folder = folder_of(located(given))
        is_same = folder is not None and known == hash_of_model(folder)
        moved = {"model": config.model, "model_dir": str(folder)}
        changes = {**changes, **(moved if is_same else {"model_dir": ""})}
    elif is_named:
        changes = {**changes, "model_dir": ""}
    return replace(config, **changes)


def hash_of_model(folder: Path) -> str:
    """Hash a complete model's settings, tokenizer and templates, and samples of its weights.

    Names and samples of all weights stand for their content: to read tens of GB takes minutes.

    Returns:
        16 hex digits.
    """
    digest = hashlib.sha256()
    for name in FILES:
        if (folder / name).exists():
            digest.update(f"{name} {_content(folder / name)}".encode())
    for file in sorted(folder.glob("model*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as weights:
            for number in range(SAMPLES):
                weights.seek(size * number // SAMPLES)
                digest.update(weights.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _content(file: Path) -> str:
    """Return a file's text, of JSON without what libraries write of themselves."""
    if file.suffix != ".json":
        return file.read_text(encoding="utf-8")
    values = read_json(file)
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if name not in OF_LIBRARIES}
    return json.dumps(values, sort_keys=True)


def _check_same(folder: str, model: str, known: str | None) -> None:
    found = folder_of(folder)
    if found is None or known not in (None, hash_of_model(found)):
        what = "no complete model" if found is None else "another one"
        raise SourceError(f"model_dir={folder}: expected the files of {model}, found {what}")


def _known(paths: RunPaths) -> dict[str, str]:
    """Read the hashes of the run's models, by their names."""
    try:
        return read_json(paths.model)
    except (FileNotFoundError, TornFile):
        return {}

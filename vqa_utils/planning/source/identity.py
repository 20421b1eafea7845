"""Know a run's model again where it lies in another folder."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqa_utils.artifacts.files import TornFile, read_json, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.places import located
from vqa_utils.config import Config
from vqa_utils.planning.source.check import folder_of, source_of

SAMPLES = 16  # of each file of weights
SAMPLE_BYTES = 2**16


def record_model(paths: RunPaths, config: Config) -> None:
    """Keep a hash of the model's files with the run, once they are here."""
    known = _known(paths)
    folder = None if config.model in known else folder_of(source_of(config))
    if folder is not None:
        write_json(paths.model, {**known, config.model: hash_of_model(folder)})


def with_changes(paths: RunPaths, config: Config, changes: dict[str, Any]) -> Config:
    """Change a run's settings; another folder with its own model is the place of that alone."""
    given = changes.get("model", config.model)
    folder = None if given == config.model else folder_of(located(given))
    if folder is not None and _known(paths).get(config.model) == hash_of_model(folder):
        changes = {**changes, "model": config.model, "model_dir": str(folder)}
    return replace(config, **changes)


def hash_of_model(folder: Path) -> str:
    """Hash a complete model's config.json and samples of its weights: 16 hex digits.

    Names and samples of all weights stand for their content: to read tens of GB takes minutes.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as weights:
            for number in range(SAMPLES):
                weights.seek(size * number // SAMPLES)
                digest.update(weights.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _known(paths: RunPaths) -> dict[str, str]:
    """Read the hashes of the run's models, by their names."""
    try:
        return read_json(paths.model)
    except (FileNotFoundError, TornFile):
        return {}

"""Prepare without a GPU what sessions with one take: weights in 4 bits, pictures as they are shown."""

import functools
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from vqa_utils.config import Config
from vqa_utils.data.challenge import load_challenge
from vqa_utils.data.pictures.images import each_file
from vqa_utils.errors import RunError
from vqa_utils.model._quantized_copy import new_copy
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.features.encoding import Pictures, pictures_of
from vqa_utils.model.loading import SHARD_SIZE, load_processor, model_path
from vqa_utils.model.nf4.quantizer import nf4_config, packing_on
from vqa_utils.planning.source.check import check_source, is_packed, source_of


def prepare_base(config: Config, folder: Path) -> int:
    """Download, check and pack the settings' base into a folder that `--model` takes.

    Experts go through files beside the folder, so that memory holds one layer's at a time. If the
    settings name data, their pictures are decoded into the folder too.

    Args:
        config: the settings of a run.
        folder: new; it is complete or not there.

    Returns:
        The number of pictures.

    Raises:
        RunError: the folder is there, or the settings pack nothing.
        SourceError: the model has missing or torn files.
        DataError: the data have problems.
    """
    if folder.exists():
        raise RunError(f"prepare: expected a new folder, found {folder}")
    if config.quantization != "nf4":
        raise RunError(f"quantization: expected nf4, found {config.quantization}: nothing to pack")
    check_source(source_of(config))
    source = model_path(config)
    if is_packed(source):
        raise RunError(f"--model: expected weights in 16 bits, found packed ones in {source}")
    pictures = _pictures(config) if config.data else None
    dtype = torch.float16 if config.use_amp else torch.float32  # as on a GPU
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as disk, packing_on(Path(disk)):
        model = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=dtype,
            quantization_config=nf4_config(dtype, config.use_double_quant),
            device_map={"": "cpu"},
            use_safetensors=True,
        )
        with new_copy(folder) as draft:
            model.save_pretrained(draft, save_original_format=False, max_shard_size=SHARD_SIZE)
            processor = load_processor(config)
            processor.save_pretrained(draft)
            if pictures is None:
                return 0
            encoder = Encoder(processor, pictures.folder, config.image_side, config.prompt)
            prepared = encoder.prepared_in(draft)
            each_file(
                functools.partial(encoder.prepare, pictures=prepared),
                pictures.paths,
                "preparing pictures",
            )
            return len(pictures.paths)


def _pictures(config: Config) -> Pictures:
    """List the pictures of the settings' data, once all have been read."""
    with tempfile.TemporaryDirectory() as folder:  # images.csv is a run's
        challenge = load_challenge(config, images=Path(folder) / "images.csv")
    return pictures_of(challenge.folder, [challenge.train, challenge.extra, challenge.test])

"""A base of a published shape with random weights, and made-up rows for it."""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from timing import DEVICE
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from vqa_utils.config import Config
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.features.encoding import pictures_of, store_features
from vqa_utils.model.features.store import FeatureStore
from vqa_utils.model.loading import load_processor, loading_options
from vqa_utils.model.nf4.quantizer import offloading
from vqa_utils.planning.plan import memory_plan
from vqa_utils.planning.shapes import ModelShape, published_config, read_shape
from vqa_utils.presets import preset
from vqa_utils.prompts import LETTERS
from vqa_utils.tiny_base._architecture import SPECIAL

TEXT_WORDS = 60
WORDS = ("red", "circle", "is", "the", "colour", "shape", "blue")


class RandomWeight:
    """A stand-in for the loader's slice of a file, drawn when [...] would read the file."""

    def __init__(self, name: str, shape: tuple[int, ...]):
        self.name = name
        self.shape = shape

    def get_shape(self) -> tuple[int, ...]:
        """Return the shape, as safetensors' slices do."""
        return self.shape

    def __getitem__(self, index: object) -> torch.Tensor:
        if "norm" in self.name and self.name.endswith("weight"):
            return torch.ones(self.shape, dtype=torch.bfloat16)
        empty = torch.empty(self.shape, dtype=torch.float16, device=DEVICE)
        return empty.normal_(std=0.02)


def checkpoint(shape: ModelShape) -> dict[str, RandomWeight]:
    """Make the official layout: experts as [E, H, 2I] and [E, I, H], transposed by the loader."""
    weights = {}
    for name, size in shape.parameters.items():
        if ".experts." in name:
            size = (size[0], size[2], size[1])
        weights[name] = RandomWeight(name, size)
    return weights


def config_with_tokens(config: Config, processor: Qwen3VLProcessor) -> dict[str, Any]:
    """Return the model's published config, with the special tokens of the demo's tokenizer."""
    published = published_config(config.model)
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    for name, token in zip(names, SPECIAL[2:], strict=True):
        published[name] = processor.tokenizer.convert_tokens_to_ids(token)
    return published


def load_stock(config: Config, processor: Qwen3VLProcessor) -> PreTrainedModel:
    """Load the model with its experts in NF4, and the rest as transformers leaves it."""
    published = config_with_tokens(config, processor)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(published))
        model_config = AutoConfig.from_pretrained(folder)
    plan = memory_plan(config)
    model_class = AutoModelForImageTextToText._model_mapping[type(model_config)]
    with offloading(plan.offloaded_layers if plan else ()):
        return model_class.from_pretrained(
            None,
            config=model_config,
            state_dict=checkpoint(read_shape(published)),
            **loading_options(config, plan),
        )


def encode_pictures(
    base: PreTrainedModel,
    config: Config,
    processor: Qwen3VLProcessor,
    folder: Path,
    rows: pd.DataFrame,
) -> None:
    """Put features of the rows' pictures in the vision tower's place, as `cache_features` does."""
    encoder = Encoder(processor, folder, config.image_side, config.prompt)
    store = FeatureStore(folder / "features")
    store_features(base, store, pictures_of(folder, [rows]), encoder, config)


def make_processor(patch_px: int) -> Qwen3VLProcessor:
    """Join the demo's tokenizer with the model's patches."""
    tokenizer = load_processor(preset("demo")).tokenizer
    images = Qwen2VLImageProcessor(patch_size=patch_px, merge_size=2, temporal_patch_size=2)
    videos = Qwen3VLVideoProcessor()
    return Qwen3VLProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def make_rows(folder: Path, side: int, count: int) -> pd.DataFrame:
    """Write images of noise, `side` px wide, and return rows with questions of TEXT_WORDS words."""
    rng = np.random.default_rng(side)
    options = dict(zip(LETTERS, ("red", "blue", "green", "yellow"), strict=True))
    rows = []
    for number in range(count):
        path = f"{side}_{number}.bmp"
        noise = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / path)
        words = random.Random(number).choices(WORDS, k=TEXT_WORDS)
        row = {
            "id": str(number),
            "path": path,
            "question": " ".join(words),
            **options,
            "answer": LETTERS[number % 4],
        }
        rows.append(row)
    return pd.DataFrame(rows)

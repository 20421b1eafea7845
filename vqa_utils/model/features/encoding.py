"""Run the vision tower for the pictures that have no file yet."""

import functools
import gc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn
from torch.utils.data import DataLoader
from transformers import BatchFeature, PreTrainedModel

from vqa_utils.artifacts.stop import SCORING, quiet_worker, stop_if_asked, tell_by_hand
from vqa_utils.config import Config
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.fast.table import When, use_fast_forwards
from vqa_utils.model.features.stand_in import StoredFeatures
from vqa_utils.model.features.store import Features, FeatureStore
from vqa_utils.model.fp16 import keep_residual_stream_in_fp32
from vqa_utils.planning.shapes import VISION


class Pictures(NamedTuple):
    """The pictures that a model is shown."""

    folder: Path
    """The paths are relative to it."""
    paths: list[str]
    grey: list[str]
    """Those of `paths` that are shown as grey ones of their sizes too."""


def pictures_of(
    folder: Path, tables: Iterable[pd.DataFrame], grey: pd.DataFrame | None = None
) -> Pictures:
    """List the different pictures of tables of rows.

    Args:
        folder: the rows' `path` is relative to it.
        tables: of rows with `path`.
        grey: the rows among them whose pictures are shown as grey ones too.
    """
    paths = [path for table in tables for path in table["path"]]
    shown_grey = [] if grey is None else list(grey["path"])
    return Pictures(folder, list(dict.fromkeys(paths)), list(dict.fromkeys(shown_grey)))


def store_features(
    model: PreTrainedModel,
    store: FeatureStore,
    pictures: Pictures,
    encoder: Encoder,
    config: Config,
) -> None:
    """Encode the pictures that the store lacks, and put the store in the vision tower's place.

    A picture goes through the tower alone, so that its features do not depend on others.

    Args:
        model: in transformers' state, as it was loaded.
        store: of the model's features.
        pictures: all that the model will be shown.
        encoder: of the run, for the pixels.
        config: the settings of the run.
    """
    tower = model.get_submodule(VISION)
    dtype = model.dtype
    model.set_submodule(VISION, StoredFeatures(store, dtype, tower.spatial_merge_size))
    prepare_tower(tower, dtype)
    views = [(pictures.paths, encoder), (pictures.grey, encoder.blanked())]
    if config.looks_closer:  # the tower has gone before it is known at which pictures
        views.append((pictures.paths, encoder.closer(config.look_side, config.look_crops)))
    for paths, shown in views:
        files = _missing(store, pictures.folder, paths, shown)
        loaded = _pixels(shown, list(files), config.num_workers)
        for done, (path, pixels) in enumerate(loaded, 1):
            stop_if_asked(SCORING)  # not TRAINING: pictures are encoded before scoring too
            tell_by_hand(done, len(files), "encoding pictures")
            store.write(files[path], run_tower(tower, pixels, dtype))
    del tower
    gc.collect()  # modules refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prepare_tower(tower: nn.Module, dtype: torch.dtype) -> None:
    """Prepare a tower to run without the rest of its model, as `finish` prepares it within.

    It is on one device, and so needs none of accelerate's hooks, 99 for a picture.
    """
    remove_hook_from_module(tower, recurse=True)
    alone = nn.Module()
    alone.visual = tower.requires_grad_(False).eval()  # a tower is known by this name
    if dtype == torch.float16:
        keep_residual_stream_in_fp32(alone)
    use_fast_forwards(alone, When.ON_THE_BASE)


def _missing(
    store: FeatureStore, folder: Path, paths: list[str], shown: Encoder
) -> dict[str, Path]:
    """Return the files to write, by a path of a picture to encode for each."""
    file_of = store.grey_file_of if shown.blank else store.file_of
    missing: dict[Path, str] = {}
    for path in paths:
        file = file_of(folder / path, shown.view)
        if file not in missing and not file.exists():
            missing[file] = path
    return {path: file for file, path in missing.items()}


def _pixels(encoder: Encoder, paths: list[str], workers: int) -> Iterator[tuple[str, BatchFeature]]:
    """Yield each path with its picture's pixels, which `workers` processes decode."""
    loader: DataLoader[Any] = DataLoader(
        paths,
        batch_size=1,
        collate_fn=encoder.pixels,
        num_workers=workers,
        worker_init_fn=functools.partial(quiet_worker, None),
    )
    yield from zip(paths, loader, strict=True)


@torch.inference_mode()
def run_tower(tower: Any, pixels: BatchFeature, dtype: torch.dtype) -> Features:
    """Run the tower for one picture, and its crops.

    Args:
        tower: of `prepare_tower`.
        pixels: of `Encoder.pixels`.
        dtype: of the products, and of the features.
    """
    device = next(tower.parameters()).device
    grids = pixels["image_grid_thw"]  # [images, 3]
    values = pixels["pixel_values"].to(device, dtype)  # [patches, pixels of a patch]
    with torch.autocast(device.type, torch.float16, enabled=dtype == torch.float16):
        output = tower(values, grid_thw=grids.to(device), return_dict=True)
    deepstack = getattr(output, "deepstack_features", None) or []
    tokens = torch.stack([output.pooler_output, *deepstack], dim=1)  # [image tokens, 1 + D, H]
    return Features(tokens.to(dtype).cpu(), grids)

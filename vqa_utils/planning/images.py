"""Count the bytes of pictures: as pixels, in the vision tower, and as its features."""

import math

from vqa_utils.config import Config
from vqa_utils.planning.batches import Batch
from vqa_utils.planning.memory import FP16, FP32
from vqa_utils.planning.shapes import ModelShape


def image_bytes(shape: ModelShape, batch: Batch) -> int:
    """Count the bytes of a forward's images: as they come, and what the tower makes of pixels.

    That is its residual stream, its features, and DeepStack's. Of either, the features at the
    images' places are there once more, in fp32.
    """
    image_tokens = batch.rows * batch.image_tokens
    features = FP32 * shape.hidden  # per image token
    stream = 0  # per patch
    if not batch.has_features:
        features += FP16 * shape.deepstack_layers * shape.hidden
        stream = FP32 * shape.vision_hidden
    made = image_tokens * features + _patches(shape, batch) * stream
    return input_bytes(shape, batch) + made


def input_bytes(shape: ModelShape, batch: Batch) -> int:
    """Count the bytes of a batch's images as they come: pixels, or features."""
    if batch.has_features:
        return batch.rows * batch.image_tokens * _token_bytes_of_features(shape, FP16)
    return _patches(shape, batch) * _pixel_bytes(shape)


def _token_bytes_of_features(shape: ModelShape, element_bytes: int) -> int:
    """Count the bytes of an image token's features: those at its place, and DeepStack's."""
    return (1 + shape.deepstack_layers) * shape.hidden * element_bytes


def feature_bytes(shape: ModelShape, config: Config) -> int:
    """Count the bytes of the features of one picture of the maximum size: 2.4 MB of the 30B's.

    Those of its crops come to it, and of a second look that sees more.
    """
    views = {(config.image_side, config.prompt.images)}
    if config.looks_closer:
        views.add((config.look_side, config.look_prompt.images))
    tokens = sum(images * math.ceil(side**2 / shape.pixels_per_token) for side, images in views)
    return tokens * _token_bytes_of_features(shape, FP16 if config.use_amp else FP32)


def vision_bytes(shape: ModelShape, batch: Batch) -> int:
    """Count the bytes of the vision tower's forward: pixels, residual stream, a block's temporaries.

    All terms are bytes per patch.
    """
    streams = 2 * FP32 * shape.vision_hidden
    attention = 9 * FP32 * shape.vision_hidden  # of a block
    mlp = 3 * FP16 * shape.vision_mlp_width  # of a block
    return _patches(shape, batch) * (_pixel_bytes(shape) + streams + max(attention, mlp))


def _patches(shape: ModelShape, batch: Batch) -> int:
    """Count the patches of all images."""
    pixels = batch.rows * batch.image_tokens * shape.pixels_per_token
    return pixels // shape.patch_px**2


def _pixel_bytes(shape: ModelShape) -> int:
    """Count the bytes per patch: three colours of two frames in fp32."""
    return 3 * 2 * shape.patch_px**2 * FP32

"""List the kernels of the vision tower, as `_kernels` lists those of the language model."""

import math

from vqa_utils.forecasting._kernels import FORWARD, Kernel
from vqa_utils.planning.batches import Batch
from vqa_utils.planning.memory import FP16
from vqa_utils.planning.shapes import VISION, ModelShape


def vision(shape: ModelShape, batch: Batch) -> list[Kernel]:
    """List the kernels of the vision tower; it has no backward."""
    hidden = shape.vision_hidden
    patches_per_token = shape.pixels_per_token // shape.patch_px**2
    patches_per_image = batch.image_tokens * patches_per_token // batch.images
    patches = batch.rows * batch.images * patches_per_image
    forward = (FORWARD,)
    kernels = []
    for name, size in shape.parameters.items():
        # Biases and norms have one dimension; position embeddings are looked up, not multiplied
        if not name.startswith(VISION) or len(size) < 2 or "pos_embed" in name:
            continue
        # A merger's rows are image tokens: patches_per_token patches side by side
        inputs = patches / patches_per_token if "merger" in name else patches
        kernels.append(Kernel(name, math.prod(size), forward, 2 * inputs, reads=FP16))
    # Bytes read and written together: two norms, rotation, attention, sums onto the residual stream.
    # The activation is part of a product
    moved = (18 + 8 + 8 + 10) * hidden
    # Per patch; it attends to all patches of its image
    operations = 2 * 2 * hidden * patches_per_image  # of QK^T and of the weighted sum of V
    block_patches = vision_blocks(shape) * patches
    kernels.append(Kernel("rest of blocks", block_patches, forward, operations, reads=moved))
    return kernels


def vision_blocks(shape: ModelShape) -> int:
    """Count the blocks of the vision tower."""
    prefix = f"{VISION}.blocks"
    return sum(
        name.startswith(prefix) and name.endswith("attn.qkv.weight") for name in shape.parameters
    )

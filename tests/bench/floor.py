"""The least seconds that any code takes for a row.

The floor counts, at rates measured in the same run: the operations of all products forward and of
their input gradients backward (nothing is recomputed), and each packed weight read once per pass.
"""

import math
from typing import Any

from timing import rounded

from vqa_utils.config import Config
from vqa_utils.planning.memory import weights_by_module
from vqa_utils.planning.shapes import published_config, read_shape

Measured = dict[str, Any]


def add_floors(result: Measured, config: Config, rate: dict[str, float]) -> None:
    """Add `floor_s`, in seconds per row, to a case's training and scoring; a CPU has no rates."""
    if not rate:
        return
    for mode in ("train", "score"):
        if mode in result:
            tokens = result["tokens"][mode]
            training = mode == "train"
            share = floor_s(config, tokens, result["rows"], rate, training=training)
            result[mode]["floor_s"] = rounded(share)


def floor_s(
    config: Config, tokens: int, rows: int, rate: dict[str, float], *, training: bool
) -> float:
    """Return the least seconds per row: operations and packed weights at the card's rates.

    Args:
        tokens: of each row, padding included.
        rows: of a batch; its packed weights are read once.
        rate: `tflops` and `tbps`, as `rates` measures them.
        training: with the input gradients, which are as many operations on the text.
    """
    shape = read_shape(published_config(config.model))
    patches = config.image_side**2 // shape.patch_px**2
    text_weights = vision_weights = 0  # that a token, or a patch, is multiplied with
    for name, size in shape.parameters.items():
        count = math.prod(size)
        if ".experts." in name:
            text_weights += count // size[0] * shape.experts_per_token
        elif name.endswith("proj.weight") and "language_model" in name:
            text_weights += count
        elif name.endswith("weight") and "visual.blocks" in name:
            vision_weights += count
    passes = 2 if training else 1
    operations = 2 * (passes * text_weights * tokens + vision_weights * patches)
    packed_bytes = 0
    for groups in weights_by_module(shape, config).values():
        packed_bytes += sum(groups.values())
    computing_s = operations / (rate["tflops"] * 1e12)
    reading_s = passes * packed_bytes / (rate["tbps"] * 1e12) / rows
    return computing_s + reading_s

"""Make the batches that a run is planned for."""

import math
from dataclasses import dataclass, replace

from vqa_utils.config import Config
from vqa_utils.planning.shapes import ModelShape

# Tokens that the longest instruction of `paraphrase` has beyond the usual one (Qwen's vocabulary)
LONGER_INSTRUCTION = 8
# Share of a row's text in its options and what follows them: each further option order adds it
OPTIONS_SHARE = 80 / 128
MOST_ORDERS = 4  # of a row's options that are scored
# Positions of a row that get logits: the letter, the two tokens that end the turn, one before them
LOGIT_POSITIONS = 4


@dataclass(frozen=True)
class Batch:
    """The rows of one pass through the model."""

    rows: int
    image_tokens: int
    """Per row, of all its images."""
    text_tokens: int
    """Per row."""
    has_features: bool = False
    """Pictures come as features of a store, not as pixels for the vision tower."""
    images: int = 1
    """Per row: the picture, and its crops."""

    @property
    def tokens(self) -> int:
        """Count the tokens of all rows."""
        return self.rows * (self.image_tokens + self.text_tokens)


def batch_of(
    shape: ModelShape, config: Config, rows: int, *, orders: int = 1, training: bool = False
) -> Batch:
    """Make the batch to plan for: every image at its maximum size, every text as long as usual.

    In training, `paraphrase` may draw a longer instruction.

    Args:
        orders: option orders in one pass.
    """
    # image_side**2 px limits the area, so no aspect ratio has more tokens
    images = config.prompt.images
    image_tokens = images * math.ceil(config.image_side**2 / shape.pixels_per_token)
    text_tokens = _text_tokens(config, orders) + config.prompt.image_marks
    if training and config.paraphrase:
        text_tokens += LONGER_INSTRUCTION
    return Batch(rows, image_tokens, text_tokens, config.caches_features, images)


def batches_of(
    shape: ModelShape, config: Config, rows: int, *, orders: int = 1, training: bool = False
) -> list[Batch]:
    """Make the batches that have to fit: the usual one, and the longest row alone if it has more.

    A pass of outliers has no more tokens than one of these (`PassSize`), and one option order.
    """
    usual = batch_of(shape, config, rows, orders=orders, training=training)
    most_text = config.trained_text if training else config.scored_text
    longest = replace(usual, rows=1, text_tokens=most_text + config.prompt.image_marks)
    return [usual, longest] if longest.tokens > usual.tokens else [usual]


def of_second_look(config: Config) -> Config:
    """Return settings whose first look is the second one of these."""
    return replace(
        config,
        image_side=config.look_side,
        crops=config.look_crops,
        second_look=0.0,
        second_look_side=0,
        second_look_crops=0,
    )


def second_look_batches(shape: ModelShape, config: Config) -> list[Batch]:
    """Make the batches of the second look at uncertain rows, as `batches_of` does."""
    look = of_second_look(config)
    image_tokens, look_image_tokens = (
        batch_of(shape, one, 1).image_tokens + one.prompt.image_marks for one in (config, look)
    )
    rows = second_look_rows(config, image_tokens, look_image_tokens)
    return batches_of(shape, look, rows, orders=MOST_ORDERS)


def second_look_rows(config: Config, image_tokens: int, look_image_tokens: int) -> int:
    """Return the rows per pass of a second look, with no more tokens than the first look's pass.

    Args:
        config: the run's.
        image_tokens: of a row, at most, at first, with the marks between its images.
        look_image_tokens: likewise, in the second look.
    """
    first = image_tokens + _text_tokens(config, config.tta)
    second = look_image_tokens + _text_tokens(config, MOST_ORDERS)
    return max(1, config.score_batch_rows * first // second)


def _text_tokens(config: Config, orders: int) -> int:
    """Count the text tokens of a usual row in so many option orders."""
    return config.usual_text + math.ceil((orders - 1) * OPTIONS_SHARE * config.usual_text)

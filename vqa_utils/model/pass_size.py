"""Keep the passes through the model within the tokens that the memory plan has counted."""

from collections.abc import Sequence
from dataclasses import dataclass

from vqa_utils.data.text_lengths import longest_usual
from vqa_utils.model.encoder import Encoder, Row
from vqa_utils.setting_types import AUTO, CountOrAuto


@dataclass(frozen=True)
class PassSize:
    """The most that goes through the model at a time.

    rows of 272 tokens, 4 at a time             1900   700 300   260 250 220 200   90 80
    passes of at most 4 x 272 = 1088 tokens     |--|   |-----|   |-------------|   |---|
    """

    rows: int
    row_tokens: int
    """Of a row that is no outlier, image and text: see `row_tokens`."""

    def passes(self, lengths: Sequence[int]) -> list[list[int]]:
        """Split row numbers into passes by length, the longest first, so that little is padding.

        Outliers share no pass with others, and have no more tokens than a pass of the others may
        have; a row with more than that is alone.

        Args:
            lengths: each row's tokens.
        """
        # If memory is short, the first pass fails, not a later one
        longest_first = sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)
        passes: list[list[int]] = []
        for row in longest_first:
            if not passes or not self._has_room(passes[-1], row, lengths):
                passes.append([])
            passes[-1].append(row)
        return passes

    def is_outlier(self, length: int) -> bool:
        """Tell whether a row has more tokens than passes are planned for."""
        return length > self.row_tokens

    def _has_room(self, rows: Sequence[int], row: int, lengths: Sequence[int]) -> bool:
        longest = lengths[rows[0]]
        if len(rows) == self.rows or self.is_outlier(longest) != self.is_outlier(lengths[row]):
            return False
        # Each row is padded to the longest
        return not self.is_outlier(longest) or (len(rows) + 1) * longest <= self._tokens

    @property
    def _tokens(self) -> int:
        return self.rows * self.row_tokens


def row_tokens(text_tokens: CountOrAuto, encoder: Encoder, rows: Sequence[Row]) -> int:
    """Return the most tokens of a row that is no outlier: those planned for, image and text.

    Args:
        text_tokens: the setting; "auto" until a run has measured its data.
        encoder: of the rows.
        rows: at least one; they are measured under "auto".
    """
    if text_tokens == AUTO:
        return longest_usual(encoder.lengths(rows))
    return encoder.most_image_tokens + text_tokens

"""Shuffle options and label anew each epoch: no letter is worth more than another."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset

from vqa_utils.model.encoder import Row
from vqa_utils.prompts import LETTERS, reorder_options
from vqa_utils.training._steps import Key, Order, OrderAbove, Rows, steps_of

# The place of the right option, then those of the three others, in the order of their letters
Places = tuple[int, ...]


class ShuffledSteps(OrderAbove[tuple[Key, Places]]):
    """Add new places for its options to each row of an order.

    Within an optimizer step the right options are spread over the letters as evenly as its rows
    allow. The places depend on the seed, the epoch and the step alone, so that a resumed training
    draws the same.
    """

    def __init__(self, order: Order[Key], step_rows: int, seed: int):
        super().__init__(order)
        self.step_rows = step_rows
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Key, Places]]:
        for number, step in enumerate(steps_of(self.order, self.step_rows)):
            rng = np.random.default_rng([self.seed, self.epoch, number])
            places = draw_places(len(step), rng)
            yield from zip(step, places, strict=True)


def draw_places(rows: int, rng: np.random.Generator) -> list[Places]:
    """Draw the places of the options of `rows` rows, with the letters of the answers balanced."""
    letters = rng.permutation(len(LETTERS))  # the first of these get one row more, if any do
    right_places = rng.permutation(np.resize(letters, rows))  # [rows]
    drawn = []
    for right in right_places.tolist():
        other_places = [place for place in range(len(LETTERS)) if place != right]
        others = rng.permutation(other_places).tolist()
        drawn.append((right, *others))
    return drawn


class ShuffledOptions(Dataset[Row]):
    """Training rows with their options in a new order, by the row's key and the options' places."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[Key, Places]) -> Row:
        row_key, places = key
        row = self.rows[row_key]
        return reorder_options(row, order_of(places, row["answer"]))


def order_of(places: Places, answer: str) -> list[int]:
    """Return the option at each place, as `reorder_options` takes it."""
    right = LETTERS.index(answer)
    others = [option for option in range(len(LETTERS)) if option != right]
    option_at = dict(zip(places, [right, *others], strict=True))
    return [option_at[place] for place in range(len(LETTERS))]

"""The effect of an option's place on the answer, told from several cyclic orders of the options."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_orders
from vqa_utils.config import Config
from vqa_utils.ensembling.members import rows_of, scored_folds
from vqa_utils.metrics import (
    DECIMALS,
    correct,
    mean_interval,
    one_hot,
    option_matrix,
    predictions,
)
from vqa_utils.prompts import LETTERS, cyclic_order

# With fewer rows the bootstrap's intervals are too short: at 24 rows an unbiased model was called
# biased in 9 % of cases
MIN_ROWS = 30
# The share of cases in which an interval, or a joint set of intervals, misses the truth
LEVEL = 0.05
AS_WRITTEN = "options as written"


@dataclass(frozen=True)
class PositionBias:
    """The effect of the options' places on a model's answers."""

    rows: int
    order_count: int
    """cyclic orders in which all rows were scored"""
    places: pd.DataFrame
    """`place`, `beyond`, `low`, `high`; the four intervals hold jointly. With several orders,
    `beyond` is the probability at a place beyond what the options there deserve; with one, the
    share of rows that choose the letter minus the share where it is right"""
    orders: pd.DataFrame
    """one line an order, if there are several: `order`, `accuracy`, `against_mean` (its accuracy
    minus that of the mean over the orders) with its interval `low` to `high`, and `changed` (the
    share of rows with another answer than the mean's)"""
    changed: float
    """the share of rows that the orders do not all answer alike"""

    @property
    def title(self) -> str:
        """What `beyond` counts, in points."""
        if self.order_count > 1:
            return "Probability beyond what options deserve"
        return "Rows where chosen less rows where right"

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables with rows, by title."""
        tables = {"Places": self.places, "Orders": self.orders}
        return {title: table for title, table in tables.items() if len(table)}

    def describe(self) -> str:
        """The findings in words."""
        if self.orders.empty:
            return self._describe_places()
        return f"{self._describe_places()}\n{self._describe_orders()}"

    def _describe_places(self) -> str:
        by_size = self.places.sort_values("beyond", ascending=False, kind="stable")
        most, least = by_size.iloc[0], by_size.iloc[-1]
        extremes = (
            f"{most['place']} {_in_points(most, 'beyond')}, "
            f"{least['place']} {_in_points(least, 'beyond')}"
        )
        if self.order_count == 1:
            return (
                "All rows share no more than one order of their options (as with tta=1), which "
                "cannot tell a place from the options there. Rows where a letter is chosen less "
                f"rows where it is right, in points: {extremes}. {self._describe_chance()}"
            )
        pairs = ""
        if self.order_count == 2:
            pairs = " Two orders set a against c and b against d, no more."
        return (
            f"Over {self.order_count} orders, the probability at a place beyond what the options "
            f"there deserve is, in points: {extremes}. {self._describe_chance()}{pairs}"
        )

    def _describe_chance(self) -> str:
        if self.rows < MIN_ROWS:
            return f"With {self.rows} rows, fewer than {MIN_ROWS}, that says nothing beyond chance."
        excludes_zero = (self.places["low"] > 0) | (self.places["high"] < 0)
        biased = ", ".join(self.places["place"][excludes_zero]) or "none"
        return f"Beyond chance, at 95 % for all four together: {biased}."

    def _describe_orders(self) -> str:
        first = self.orders.iloc[0]
        gain = _in_points(first, "against_mean")
        return (
            f"The answer changes with the order in {self.changed:.1%} of the rows. With the "
            f"{AS_WRITTEN} alone, {first['accuracy']:.1%} are right, {gain.value} points (95 % "
            f"interval {gain.low} to {gain.high}) against the mean of all orders."
        )


def position_bias(orders: pd.DataFrame, probs: pd.DataFrame, answers: pd.Series) -> PositionBias:
    """Compare the orders in which a run's rows were scored.

    Args:
        orders: `order`, `id`, `a` to `d`, from `pooled_orders`.
        probs: `id`, `a` to `d`, the mean over the orders.
        answers: the right letters, in the order of `probs`.
    """
    by_shift: dict[int, pd.DataFrame] = {}
    for shift in sorted(orders["order"].unique()):
        frame = orders[orders["order"] == shift]
        by_shift[int(shift)] = rows_of(probs, frame)
    if len(by_shift) > 1:
        beyond = beyond_deserved(by_shift)
        table, changed = _compare_orders(by_shift, probs, answers)
    else:
        beyond = one_hot(predictions(probs)) - one_hot(answers)
        table, changed = pd.DataFrame(), 0.0
    return PositionBias(len(probs), len(by_shift), _place_table(beyond), table, changed)


def pooled_orders(
    paths: RunPaths, config: Config, folds: pd.DataFrame, probs: pd.DataFrame
) -> pd.DataFrame:
    """The out-of-fold probabilities `probs` by option order, for the orders that all folds have.

    A run whose folds have one order alone gets `probs` as that order.

    Args:
        folds: `id` and `fold` of the train rows.

    Returns:
        `order`, `id`, `a` to `d`.
    """
    scored = scored_folds(paths, config)[0]
    if not all(paths.fold(k).orders("oof").exists() for k in scored):
        return probs.assign(order=0)
    parts = []
    for k in scored:
        held_out_ids = folds["id"][folds["fold"] == k]
        parts.append(read_orders(paths.fold(k).orders("oof"), held_out_ids))
    pooled = pd.concat(parts)
    rows_of_order = pooled.groupby("order")["id"].transform("size")
    return pooled[rows_of_order == len(probs)]


def beyond_deserved(orders: Mapping[int, pd.DataFrame]) -> np.ndarray:
    """The probability at each place beyond what its options deserve, [N, 4], mean over the orders.

    An option deserves its mean over the orders. Over all cyclic orders it stands once at each
    place, so the remainder is the place's own:

        place      a  b  c  d
        shift 0    A  B  C  D
        shift 1    B  C  D  A
        shift 2    C  D  A  B
        shift 3    D  A  B  C

    Like the prior of Zheng et al. 2024 ("Large Language Models Are Not Robust Multiple Choice
    Selectors", PriDe), minus 1/4, but a mean of probabilities in place of their logarithms.

    Args:
        orders: `a` to `d` of the same N rows, by the shift of their cyclic order.
    """
    by_shift = {shift: option_matrix(frame) for shift, frame in orders.items()}
    deserved = np.mean(list(by_shift.values()), axis=0)  # [N, 4] by option
    beyond = []
    for shift, option_probs in by_shift.items():
        beyond_by_option = option_probs - deserved  # [N, 4]
        beyond.append(beyond_by_option[:, cyclic_order(shift)])  # [N, 4] by place
    return np.mean(beyond, axis=0)


def _compare_orders(
    orders: Mapping[int, pd.DataFrame], probs: pd.DataFrame, answers: pd.Series
) -> tuple[pd.DataFrame, float]:
    """The table `PositionBias.orders`, and the share of rows that the orders answer differently."""
    chosen = np.array([predictions(frame) for frame in orders.values()])  # letters [orders, N]
    right = chosen == answers.to_numpy()  # [orders, N]
    against_mean = right.astype(float) - correct(probs, answers)  # -1, 0 or 1, [orders, N]
    low, high = mean_interval(against_mean.T, 1 - LEVEL)
    differs_from_mean = chosen != predictions(probs).to_numpy()
    table = pd.DataFrame({
        "order": [_order_name(shift) for shift in orders],
        "accuracy": right.mean(axis=1),
        "against_mean": against_mean.mean(axis=1),
        "low": low,
        "high": high,
        "changed": differs_from_mean.mean(axis=1),
    })  # fmt: skip
    return table, float((chosen != chosen[0]).any(axis=0).mean())


def _order_name(shift: int) -> str:
    return f"options turned by {shift}" if shift else AS_WRITTEN


def _place_table(beyond: np.ndarray) -> pd.DataFrame:
    """The table `PositionBias.places` from [N, 4].

    Bonferroni's correction makes the four intervals hold jointly.
    """
    beyond = beyond.round(DECIMALS)  # sums of the same numbers in another order are no bias
    low, high = mean_interval(beyond, 1 - LEVEL / len(LETTERS))
    columns = {"place": LETTERS, "beyond": beyond.mean(axis=0), "low": low, "high": high}
    return pd.DataFrame(columns)


class _Points(NamedTuple):
    """A share and its interval as text, in points."""

    value: str
    low: str
    high: str

    def __str__(self) -> str:
        return f"{self.value} ({self.low} to {self.high})"


def _in_points(line: pd.Series, column: str) -> _Points:
    texts = []
    for name in (column, "low", "high"):
        points = round(100 * line[name], 2) + 0.0  # no -0.0
        texts.append(f"{points:+.2f}")
    return _Points(*texts)

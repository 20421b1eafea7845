"""Measure how an option's position changes the answer, from several cyclic orders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import read_orders
from vqa_utils.config import Config
from vqa_utils.ensembling.members import rows_of, scored_folds
from vqa_utils.language import called, said
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
    """The effect of the options' positions on a model's answers."""

    rows: int
    order_count: int
    """cyclic orders in which all rows were scored"""
    positions: pd.DataFrame
    """`position`, `excess`, `low`, `high`; the four intervals hold jointly. With several orders,
    `excess` is the excess probability at a position; with one, the share of rows with a letter
    chosen minus the share where it is right"""
    orders: pd.DataFrame
    """one line per order, if there are several: `order`, `accuracy`, `against_mean` (its accuracy
    minus that of the mean over the orders) with its interval `low` to `high`, and `changed` (the
    share of rows with another answer than the mean's)"""
    changed: float
    """the share of rows with different answers between the orders"""

    @property
    def title(self) -> str:
        """Return the meaning of `excess`, in points."""
        if self.order_count > 1:
            return "Excess probability by position"
        return "Share chosen minus share right"

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables with rows, by title."""
        tables = {"Positions": self.positions, "Orders": self.orders}
        return {title: table for title, table in tables.items() if len(table)}

    def describe(self) -> str:
        """Describe the findings."""
        if self.orders.empty:
            return self._describe_positions()
        return f"{self._describe_positions()}\n{self._describe_orders()}"

    def _describe_positions(self) -> str:
        by_size = self.positions.sort_values("excess", ascending=False, kind="stable")
        most, least = by_size.iloc[0], by_size.iloc[-1]
        extremes = (
            f"{most['position']} {_in_points(most, 'excess')}, "
            f"{least['position']} {_in_points(least, 'excess')}"
        )
        if self.order_count == 1:
            shares = said(
                "All rows share no more than one order of their options (as with tta=1), which "
                "cannot tell a position from the options there. For a letter, the share of rows "
                "with it chosen minus the share where it is right, in points: {extremes}.",
                extremes=extremes,
            )
            return f"{shares} {self._describe_chance()}"
        excess = said(
            "Over {orders} orders, the excess probability by position is, in points: {extremes}.",
            orders=self.order_count,
            extremes=extremes,
        )
        sentences = [excess, self._describe_chance()]
        if self.order_count == 2:
            sentences.append(said("Two orders only set a against c and b against d."))
        return " ".join(sentences)

    def _describe_chance(self) -> str:
        if self.rows < MIN_ROWS:
            return said(
                "With {rows} rows, fewer than {least}, that says nothing beyond chance.",
                rows=self.rows,
                least=MIN_ROWS,
            )
        excludes_zero = (self.positions["low"] > 0) | (self.positions["high"] < 0)
        biased = ", ".join(self.positions["position"][excludes_zero]) or called("none")
        return said("Beyond chance, at 95 % for all four together: {biased}.", biased=biased)

    def _describe_orders(self) -> str:
        first = self.orders.iloc[0]
        gain = _in_points(first, "against_mean")
        return said(
            "The answer changes with the order in {changed} of the rows. With the {order} alone, "
            "{right} are right, {points} points (95 % interval {low} to {high}) against the mean "
            "of all orders.",
            changed=f"{self.changed:.1%}",
            order=called(AS_WRITTEN),
            right=f"{first['accuracy']:.1%}",
            points=gain.value,
            low=gain.low,
            high=gain.high,
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
        excess = excess_probability(by_shift)
        table, changed = _compare_orders(by_shift, probs, answers)
    else:
        excess = one_hot(predictions(probs)) - one_hot(answers)  # [N, 4], each -1, 0 or 1
        table, changed = pd.DataFrame(), 0.0
    return PositionBias(len(probs), len(by_shift), _position_table(excess), table, changed)


def pooled_orders(
    paths: RunPaths, config: Config, folds: pd.DataFrame, probs: pd.DataFrame
) -> pd.DataFrame:
    """Pool the out-of-fold probabilities by option order, for the orders that all folds have.

    If the folds have only one order, return `probs` as that order.

    Args:
        folds: `id` and `fold` of the train rows.
        probs: `id`, `a` to `d`, the mean over the orders.

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
    return pooled[rows_of_order == len(probs)]  # an order that only some folds have has fewer


def excess_probability(orders: Mapping[int, pd.DataFrame]) -> np.ndarray:
    """Compute the excess probability at each position, [N, 4], averaged over the orders.

    An option's mean over the orders is taken as its due; over all cyclic orders it stands once at
    each position, so the rest is the position's:

        position   a  b  c  d
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
    due = np.mean(list(by_shift.values()), axis=0)  # [N, 4] by option
    excess = []
    for shift, option_probs in by_shift.items():
        excess_by_option = option_probs - due  # [N, 4]
        excess.append(excess_by_option[:, cyclic_order(shift)])  # [N, 4] by position
    return np.mean(excess, axis=0)


def _compare_orders(
    orders: Mapping[int, pd.DataFrame], probs: pd.DataFrame, answers: pd.Series
) -> tuple[pd.DataFrame, float]:
    """Tabulate `PositionBias.orders`, and return the share of rows with different answers too."""
    chosen = np.array([predictions(frame) for frame in orders.values()])  # letters [orders, N]
    right = chosen == answers.to_numpy()  # [orders, N]
    against_mean = right.astype(float) - correct(probs, answers)  # -1, 0 or 1, [orders, N]
    low, high = mean_interval(against_mean.T, 1 - LEVEL)  # [orders] each
    differs_from_mean = chosen != predictions(probs).to_numpy()  # [orders, N]
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
    return f"options shifted by {shift}" if shift else AS_WRITTEN


def _position_table(excess: np.ndarray) -> pd.DataFrame:
    """Tabulate `PositionBias.positions` from [N, 4].

    Bonferroni's correction makes the four intervals hold jointly.
    """
    excess = excess.round(DECIMALS)  # sums of the same numbers in another order are no bias
    low, high = mean_interval(excess, 1 - LEVEL / len(LETTERS))
    columns = {"position": LETTERS, "excess": excess.mean(axis=0), "low": low, "high": high}
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
        texts.append(f"{100 * line[name]:+z.1f}")  # z: no -0.0
    return _Points(*texts)

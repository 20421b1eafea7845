"""What the place of an option does to an answer, read off the views of a row: orders of its options, rotations of its picture."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import VIEW_COLUMNS, read_views
from vqa_utils.config import Config
from vqa_utils.ensembling.members import scored_folds
from vqa_utils.metrics import DECIMALS, correct, mean_interval, predictions
from vqa_utils.prompts import LETTERS

MIN_ROWS = 30  # of fewer, the bootstrap's intervals are too short: an unbiased model was called biased in 9 % of cases at 24
LEVEL = 0.05  # in which all intervals together, or one alone, miss the truth
VIEW_NAMES = {
    "order": ("options as written", "options turned by {}"),
    "rotation": ("picture as it is", "picture turned by {}°"),
}  # what the value 0 of each of `VIEW_COLUMNS` means, and the others


@dataclass(frozen=True)
class PositionBias:
    """What places and rotations do to a model's answers."""

    rows: int
    orders: int
    """of the options, in which all rows were scored"""
    places: pd.DataFrame
    """`place`, and `beyond` with an interval from `low` to `high` that holds for all four together: of several orders, the
    probability at that place beyond what the options there deserve; of one, the share of rows where the letter is chosen less the
    share where it is right"""
    views: pd.DataFrame
    """a line for each of several orders (the mean over the rotations), and for each of several rotations (the mean over the
    orders): `view`, `accuracy`, `against_mean` (its accuracy less that of all views together) with its 95 % interval from `low` to
    `high`, `changed` (the share of rows that it answers otherwise)"""
    changed: dict[str, float]
    """by "order" and "rotation", where there are several: the share of rows that not all of them answer alike"""

    @property
    def title(self) -> str:
        """What `beyond` counts, in points."""
        return "Probability beyond what options deserve" if self.orders > 1 else "Rows where chosen less rows where right"

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Those that say something, by title."""
        return {"Places": self.places} | ({"Views": self.views} if len(self.views) else {})

    def read(self) -> str:
        """All of it in words."""
        return "\n".join([self._read_places(), *map(self._read_views, self.changed)])

    def _read_places(self) -> str:
        by_size = self.places.sort_values("beyond", ascending=False, kind="stable")
        ends = [(line["place"], *_points(line, "beyond")) for line in by_size.iloc[[0, -1]].to_dict("records")]
        most, least = (f"{place} {value} ({low} to {high})" for place, value, low, high in ends)
        found = ", ".join(self.places["place"][(self.places["low"] > 0) | (self.places["high"] < 0)]) or "none"
        beyond = f"Beyond chance, at 95 % for all four together: {found}."
        if self.rows < MIN_ROWS:
            beyond = f"With {self.rows} rows, fewer than {MIN_ROWS}, that says nothing beyond chance."
        if self.orders == 1:
            return (
                "All rows share no more than one order of their options (as with tta=1), which cannot tell a place from the options "
                f"there. Rows where a letter is chosen less rows where it is right, in points: {most}, {least}. {beyond}"
            )
        pairs = " Two orders set a against c and b against d, no more." if self.orders == 2 else ""
        return (
            f"Over {self.orders} orders, the probability at a place beyond what the options there deserve is, in points: {most}, "
            f"{least}. {beyond}{pairs}"
        )

    def _read_views(self, by: str) -> str:
        first = self.views.set_index("view").loc[VIEW_NAMES[by][0]]
        value, low, high = _points(first, "against_mean")
        others = [other for other in self.changed if other != by]
        over = f" (the mean over each {others[0]})" if others else ""
        return (
            f"The answer changes with the {by} in {self.changed[by]:.1%} of the rows. With the {first.name} alone{over}, "
            f"{first['accuracy']:.1%} are right, {value} points (95 % interval {low} to {high}) against the mean of all views."
        )


def position_bias(views: pd.DataFrame, probs: pd.DataFrame, answers: pd.Series) -> PositionBias:
    """Compare the views of a run's rows.

    Args:
        views: `order`, `rotation`, `id`, `a` to `d`, from `pooled_views`.
        probs: `id`, `a` to `d`, what the views say together.
        answers: the right letters, in the order of `probs`.
    """
    by_kind = {by: _each(views, by, probs["id"]) for by in VIEW_COLUMNS}
    several = {by: each for by, each in by_kind.items() if len(each) > 1}
    named = {VIEW_NAMES[by][value > 0].format(value): frame for by, each in several.items() for value, frame in each.items()}
    chosen = {by: np.array([predictions(frame) for frame in each.values()]) for by, each in several.items()}
    changed = {by: float((letters != letters[0]).any(axis=0).mean()) for by, letters in chosen.items()}
    orders = by_kind["order"]
    beyond = beyond_deserved(orders) if len(orders) > 1 else _shown(predictions(probs)) - _shown(answers)
    return PositionBias(len(probs), len(orders), _places(beyond), _view_table(named, probs, answers), changed)


def pooled_views(paths: RunPaths, config: Config, folds: pd.DataFrame, probs: pd.DataFrame) -> pd.DataFrame:
    """What each view says of the out-of-fold rows `probs`, of the views that all scored folds have.

    Where a fold has one view alone, `probs` are taken for the only one.

    Args:
        folds: `id` and `fold` of the train rows.

    Returns:
        `order`, `rotation`, `id`, `a` to `d`.
    """
    there = scored_folds(paths, config)[0]
    if not all(paths.fold(k).views("oof").exists() for k in there):
        return probs.assign(order=0, rotation=0)
    views = pd.concat([read_views(paths.fold(k).views("oof"), folds["id"][folds["fold"] == k]) for k in there])
    return views[views.groupby(VIEW_COLUMNS)["id"].transform("size") == len(probs)]


def beyond_deserved(orders: Mapping[int, pd.DataFrame]) -> np.ndarray:
    """The probability at each place of each row beyond what its options deserve, [N, 4], the mean over the orders.

    An option deserves its mean over the orders. Over all cyclic orders it stands once at each place, so that what is left is the
    place's own: like the prior that Zheng et al. 2024 estimate ("Large Language Models Are Not Robust Multiple Choice Selectors",
    PriDe), but of probabilities where they average logarithms, and less 1/4.

    Args:
        orders: `a` to `d` of the same N rows, by how many places the options were turned.
    """
    values = {shift: frame[list(LETTERS)].to_numpy() for shift, frame in orders.items()}
    deserved = np.mean(list(values.values()), axis=0)
    return np.mean([np.roll(probs - deserved, -shift, axis=1) for shift, probs in values.items()], axis=0)


def _each(views: pd.DataFrame, by: str, ids: pd.Series) -> dict[int, pd.DataFrame]:
    """The rows `ids` in each order, the mean over the rotations; or the other way round."""
    means = views.groupby([by, "id"])[list(LETTERS)].mean()
    return {int(value): means.loc[value].loc[ids].reset_index() for value in means.index.unique(by)}


def _view_table(views: Mapping[str, pd.DataFrame], probs: pd.DataFrame, answers: pd.Series) -> pd.DataFrame:
    if not views:
        return pd.DataFrame()
    chosen, together = np.array([predictions(frame) for frame in views.values()]), predictions(probs).to_numpy()  # [V, N], [N]
    right = chosen == answers.to_numpy()
    against = right.astype(float) - correct(probs, answers)
    low, high = mean_interval(against.T, 1 - LEVEL)
    values = {"accuracy": right.mean(axis=1), "against_mean": against.mean(axis=1), "low": low, "high": high}
    return pd.DataFrame({"view": list(views), **values, "changed": (chosen != together).mean(axis=1)})


def _places(beyond: np.ndarray) -> pd.DataFrame:
    """The table of places from [N, 4]. By Bonferroni, four intervals of 98.75 % hold together in 95 % of cases."""
    beyond = beyond.round(DECIMALS)  # sums of the same numbers in another order differ, which is no bias
    low, high = mean_interval(beyond, 1 - LEVEL / len(LETTERS))
    return pd.DataFrame({"place": LETTERS, "beyond": beyond.mean(axis=0), "low": low, "high": high})


def _shown(letters: pd.Series) -> np.ndarray:
    """1.0 at the letter of each row, [N, 4]."""
    return (letters.to_numpy()[:, None] == np.array(LETTERS)).astype(float)


def _points(line: Mapping[str, float], column: str) -> list[str]:
    """A share and the ends of its interval, in points."""
    return [f"{round(100 * line[name], 2) + 0.0:+.2f}" for name in (column, "low", "high")]  # + 0.0 turns -0.0 into 0.0

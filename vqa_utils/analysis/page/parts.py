"""Make the parts about results: words, a chart and a table each."""

import base64
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from vqa_utils.analysis.page.charts import Axes, Bar, Bars, Dot, Lines, Scale, Series
from vqa_utils.analysis.page.numbers import as_said, percent, percent_tick, points
from vqa_utils.analysis.page.results import Record, Result
from vqa_utils.analysis.page.tables import Table, table_of
from vqa_utils.analysis.page.verdict import CHANCE, accuracy_bars
from vqa_utils.analysis.page.words import WORDS
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.language import called

# In their order on the page; results of other names follow
ORDER = ("groups", "confusion", "positions", "orders", "letters", "reliability", "confidence")
OWN_PLACE = ("folds", "baselines", "worst_mistakes", "suspect_labels")  # elsewhere on the page
MOST_GROUPS = 12  # the hardest; the table has all
LEAST_CONFIDENCE = 0.2  # of a diagram; chance is 0.25
LEAST_DIFFERENCE = 0.001  # to draw, where all are zero
ROOM = 1.1  # beyond the longest bar
RADII = (3.0, 9.0)  # of the dots with the fewest and the most rows


@dataclass(frozen=True)
class HeatCell:
    """A count with its share of the row."""

    count: int
    share: float


@dataclass(frozen=True)
class Heat:
    """Right letters against chosen ones."""

    letters: list[str]
    rows: list[list[HeatCell]]
    kind: str = "heat"


@dataclass(frozen=True)
class Part:
    """One part of the page."""

    key: str
    title: str
    words: str
    chart: Bars | Lines | Heat | None
    figure: str
    """a data URI, of a figure that the page has no chart for"""
    table: Table | None


def parts_of(paths: RunPaths, results: dict[str, Result]) -> list[Part]:
    """Make the parts that have no place of their own, in their order."""
    known = [key for key in ORDER if key in results]
    others = [key for key in results if key not in ORDER and key not in OWN_PLACE]
    return [part_of(paths, results[key]) for key in [*known, *others]]


def part_of(paths: RunPaths, result: Result) -> Part:
    """Make the part of a result: its chart, or else its figure."""
    draw = CHARTS.get(result.key)
    chart = draw(result.records) if draw and result.rows else None
    return Part(
        key=result.key,
        title=WORDS.get(result.key, result.title),
        words=as_said(result.words),
        chart=chart,
        figure="" if draw else _data_uri(paths, result),
        table=table_of(result),
    )


def _data_uri(paths: RunPaths, result: Result) -> str:
    file = paths.report / result.figure
    if not result.figure or not file.is_file():
        return ""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _group_bars(records: list[Record]) -> Bars:
    """The hardest groups that are large enough to be tested."""
    tested = [line for line in records if line["p_worse"] is not None]
    hardest = sorted(tested or records, key=lambda line: line["accuracy"])[:MOST_GROUPS]
    named = []
    for line in hardest:
        group = f"{called(line['by'])}: {called(line['group'])}"
        named.append(line | {"group": f"{group} ({line['rows']})"})
    note = WORDS["hard"] if any(line["worse"] for line in named) else ""
    return dataclasses.replace(accuracy_bars(named, "group"), note=note)


def _confidence_bars(records: list[Record]) -> Bars:
    named = []
    for line in records:
        named.append(line | {"band": f"{called(line['confidence'])} ({line['rows']})"})
    return accuracy_bars(named, "band")


def _difference_bars(label: str, value: str) -> Callable[[list[Record]], Bars]:
    """Bars of differences, from zero in the middle."""

    def draw(records: list[Record]) -> Bars:
        most = LEAST_DIFFERENCE
        for line in records:
            most = max(most, abs(line[value]), abs(line["low"]), abs(line["high"]))
        scale = Scale(-ROOM * most, ROOM * most)
        zero = scale.percent(0.0)
        bars = []
        for line in records:
            place = scale.percent(line[value])
            bar = Bar(
                label=called(line[label]),
                text=points(line[value]),
                start=min(place, zero),
                length=abs(place - zero),
                low=scale.percent(line["low"]),
                high=scale.percent(line["high"]),
                style="own",
            )
            bars.append(bar)
        return Bars(bars, zero, "0")

    return draw


def _letter_bars(records: list[Record]) -> Bars:
    """For each letter, a bar of each set."""
    sets = [name for name in records[0] if name != "letter"]
    most = 0.0
    for line in records:
        most = max(most, *(line[name] for name in sets))
    scale = Scale(0.0, ROOM * most)
    bars = []
    for line in records:
        for number, name in enumerate(sets):
            bar = Bar(
                label="" if number else line["letter"],
                text=percent(line[name]),
                start=0.0,
                length=scale.percent(line[name]),
                style=f"s{number}",
                series=called(name),
            )
            bars.append(bar)
    return Bars(bars, scale.percent(CHANCE), WORDS["chance"], tuple(map(called, sets)))


def _heat(records: list[Record]) -> Heat:
    letters = [line["right"] for line in records]
    rows = []
    for line in records:
        total = sum(line[letter] for letter in letters)
        rows.append([HeatCell(line[letter], line[letter] / max(total, 1)) for letter in letters])
    return Heat(letters, rows)


def _reliability(records: list[Record]) -> Lines:
    axes = Axes(Scale(LEAST_CONFIDENCE, 1.03), Scale(0.0, 1.05))
    most_rows = max(line["rows"] for line in records)
    series = []
    said = []
    for name in dict.fromkeys(line["probabilities"] for line in records):
        dots = []
        for line in records:
            if line["probabilities"] != name:
                continue
            x, y = axes.place((line["confidence"], line["accuracy"]))
            radius = RADII[0] + (RADII[1] - RADII[0]) * (line["rows"] / most_rows) ** 0.5
            shares = {"x": percent(line["confidence"]), "y": percent(line["accuracy"])}
            text = WORDS["dot"].format(**shares)
            dots.append(Dot(x, y, round(radius, 1), f"{name}: {text} ({line['rows']})"))
        said += [dot.text for dot in dots]
        series.append(Series(name, "", dots))
    return Lines(
        title=WORDS["accuracy_axis"],
        alt=WORDS["reliability_alt"].format(dots="; ".join(said)),
        x_title=WORDS["confidence_axis"],
        series=series,
        x_ticks=axes.x_ticks(percent_tick),
        y_ticks=axes.y_ticks(percent_tick),
        diagonal=axes.path([(LEAST_CONFIDENCE, LEAST_CONFIDENCE), (1.0, 1.0)]),
    )


CHARTS: dict[str, Callable[[list[Record]], Bars | Lines | Heat]] = {
    "groups": _group_bars,
    "confidence": _confidence_bars,
    "positions": _difference_bars("position", "excess"),
    "orders": _difference_bars("order", "against_mean"),
    "letters": _letter_bars,
    "confusion": _heat,
    "reliability": _reliability,
}

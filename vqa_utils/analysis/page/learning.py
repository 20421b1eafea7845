"""Draw the trainings: loss, held-out scores, memory."""

from collections.abc import Callable, Sequence

from vqa_utils.analysis.page.charts import (
    Bar,
    Bars,
    Dot,
    Lines,
    Point,
    Scale,
    Series,
    averaged,
    axes_of,
)
from vqa_utils.analysis.page.numbers import decimals, gib, percent, percent_tick
from vqa_utils.analysis.page.progress import PlannedGpu
from vqa_utils.analysis.page.run_facts import FoldFacts
from vqa_utils.analysis.page.words import WORDS

RADIUS = 3.0  # of a dot at an epoch
Curve = tuple[str, list[Point]]


def fold_name(fold: FoldFacts) -> str:
    """Such as "fold 2" or "refit"."""
    return WORDS["refit"] if fold.is_refit else WORDS["fold_name"].format(number=fold.number)


def learning_curves(folds: Sequence[FoldFacts]) -> list[Lines]:
    """Loss by epoch, and accuracy and log loss on the held-out rows, a line for each fold."""
    losses = [(fold_name(fold), averaged(fold.losses)) for fold in folds]
    charts = [_chart("train_loss", losses, decimals, has_dots=False)]
    for score, text in (("accuracy", percent), ("log_loss", decimals)):
        curves = []
        for fold in folds:
            points = [(epoch["epoch"], epoch[score]) for epoch in fold.epochs]
            curves.append((fold_name(fold), points))
        charts.append(_chart(score, curves, text, has_dots=True))
    return [chart for chart in charts if chart is not None]


def memory_bars(folds: Sequence[FoldFacts], gpus: Sequence[PlannedGpu]) -> Bars | None:
    """The highest peak on each GPU with its plan; without a GPU, of each fold's process."""
    trained = [fold for fold in folds if fold.peaks_gib]
    if not trained:
        return None
    if gpus:
        return _gpu_bars(trained, gpus)
    scale = Scale(0.0, 1.1 * max(max(fold.peaks_gib) for fold in trained))
    bars = []
    for fold in trained:
        for number, peak in enumerate(fold.peaks_gib):
            name = WORDS["process"].format(name=fold_name(fold))
            if len(fold.peaks_gib) > 1:
                name = f"{WORDS['gpu'].format(number=number)}, {fold_name(fold)}"
            bars.append(Bar(name, gib(peak), 0.0, scale.percent(peak), style="own"))
    return Bars(bars)


def _gpu_bars(trained: Sequence[FoldFacts], gpus: Sequence[PlannedGpu]) -> Bars:
    bars = []
    for number, gpu in enumerate(gpus):
        peaks = [fold.peaks_gib[number] for fold in trained if number < len(fold.peaks_gib)]
        peak = max(peaks, default=0.0)
        scale = Scale(0.0, max(gpu.limit_gib, peak, gpu.fold_gib))
        planned = WORDS["peak_and_plan"].format(peak=gib(peak), plan=gib(gpu.fold_gib))
        bar = Bar(
            label=f"{WORDS['gpu'].format(number=number)}: {gpu.name}",
            text=planned,
            start=0.0,
            length=scale.percent(peak),
            style="own",
            mark=scale.percent(gpu.fold_gib),
        )
        bars.append(bar)
    return Bars(bars)


def _chart(
    title: str, curves: Sequence[Curve], text: Callable[[float], str], *, has_dots: bool
) -> Lines | None:
    """Draw curves on common axes; None without a point."""
    points: list[Point] = []
    for _, curve in curves:
        points += curve
    if not points:
        return None
    axes = axes_of(points)
    tick = percent_tick if text is percent else "{:g}".format
    series = []
    ends = []
    for name, curve in curves:
        if not curve:
            series.append(Series(name, "", []))  # keeps the colours of the others
            continue
        dots = []
        for x, y in curve if has_dots else ():
            place = axes.place((x, y))
            label = f"{name}, {WORDS['epoch']} {x:g}: {text(y)}"
            dots.append(Dot(place[0], place[1], RADIUS, label))
        series.append(Series(name, axes.path(curve), dots))
        ends.append(WORDS["curve_end"].format(name=name, value=text(curve[-1][1])))
    alt = WORDS["curve_alt"].format(title=WORDS[title], x=WORDS["epoch"], ends="; ".join(ends))
    return Lines(
        title=WORDS[title],
        alt=alt,
        x_title=WORDS["epoch"],
        series=series,
        x_ticks=axes.x_ticks(),
        y_ticks=axes.y_ticks(tick),
    )

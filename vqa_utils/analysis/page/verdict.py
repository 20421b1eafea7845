"""Say in a sentence how good the model is, and draw it."""

from dataclasses import dataclass

from vqa_utils.analysis.page.charts import Bar, Bars, Scale
from vqa_utils.analysis.page.numbers import SPACE, interval, p_value, percent, points
from vqa_utils.analysis.page.results import BASELINES, FINE_TUNED, Record, Result
from vqa_utils.analysis.page.words import WORDS
from vqa_utils.language import called
from vqa_utils.prompts import LETTERS

BEYOND_CHANCE = 0.01  # as `metrics` has it, which imports scipy
CHANCE = 1 / len(LETTERS)
SHARES = Scale(0.0, 1.0)


@dataclass(frozen=True)
class Verdict:
    """The head of the page."""

    headline: str
    """the accuracy alone"""
    sentences: list[str]
    chart: Bars


def verdict_of(results: dict[str, Result]) -> Verdict | None:
    """Judge the fine-tuned model against its baselines; None before 06_analysis."""
    if "baselines" not in results:
        return None
    by_model = {line["model"]: line for line in results["baselines"].records}
    tuned = by_model[FINE_TUNED]
    sentences = [_sentence_of(tuned, results)]
    zero_shot, blank = (by_model.get(name) for name in BASELINES.values())
    if zero_shot is not None:
        sentences.append(_compared(_difference(tuned, zero_shot), tuned, zero_shot))
    if blank is not None:
        key = "looks" if _difference(tuned, blank) == "better" else "blind"
        sentences.append(_compared(key, tuned, blank))
    chart = accuracy_bars(results["baselines"].records, "model")
    return Verdict(percent(tuned["accuracy"]), sentences, chart)


def accuracy_bars(records: list[Record], label: str) -> Bars:
    """Bars of accuracy with their intervals, and chance as a line."""
    bars = []
    for line in records:
        name = str(line[label])
        bar = Bar(
            label=WORDS.get(name) or _capitalized(called(name)),
            text=percent(line["accuracy"]),
            start=0.0,
            length=SHARES.percent(line["accuracy"]),
            low=SHARES.percent(line["low"]),
            high=SHARES.percent(line["high"]),
            style=_style(line, name),
        )
        bars.append(bar)
    return Bars(bars, SHARES.percent(CHANCE), WORDS["chance_25"].format(space=SPACE))


def _capitalized(name: str) -> str:
    return name[:1].upper() + name[1:]


def _style(line: Record, name: str) -> str:
    if line.get("worse"):
        return "bad"
    return "own" if name == FINE_TUNED or "model" not in line else "other"


def _sentence_of(tuned: Record, results: dict[str, Result]) -> str:
    rows = ""
    if "folds" in results:
        rows = f"{results['folds'].records[-1]['rows']:,}".replace(",", SPACE)
    return (
        WORDS["verdict"]
        .format(
            accuracy=percent(tuned["accuracy"]),
            rows=rows,
            space=SPACE,
            interval=interval(tuned["low"], tuned["high"]),
        )
        .replace("  ", " ")
    )


def _difference(tuned: Record, other: Record) -> str:
    """Say if the fine-tuned model is "better" or "worse" beyond chance, or "even"."""
    if other["mcnemar_p"] >= BEYOND_CHANCE:
        return "even"
    return "better" if tuned["accuracy"] > other["accuracy"] else "worse"


def _compared(key: str, tuned: Record, other: Record) -> str:
    p = p_value(other["mcnemar_p"])
    if other["mcnemar_p"] >= BEYOND_CHANCE:
        p = WORDS["asked"].format(p=p, level=BEYOND_CHANCE)
    return WORDS[key].format(
        points=points(abs(tuned["accuracy"] - other["accuracy"])).removeprefix("+"),
        accuracy=percent(other["accuracy"]),
        p=p,
    )

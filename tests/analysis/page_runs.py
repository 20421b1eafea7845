"""Folders of runs for the page: as after some notebooks, at work, failed or whole."""

import time

import pandas as pd
from measured_runs import archive

from vqa_utils.analysis.page.progress import RUNNING, RunProgress, write_progress
from vqa_utils.artifacts.files import settings_to_json, write_csv, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.presets import preset

BASELINES = [
    ["fine-tuned", 0.97, 0.957, 0.979, 1.0, 0.082, 0.008, None],
    ["base, zero-shot", 0.878, 0.855, 0.898, 0.998, 0.85, 0.111, 1.8e-19],
    ["fine-tuned, blank images", 0.318, 0.288, 0.349, 0.235, 3.9, 0.55, 6.7e-162],
]
GROUPS = [
    ["kind", "yes/no", 296, 0.909, 0.87, 0.94, 1.0, 2e-10, True],
    ["kind", "colour", 500, 0.99, 0.98, 0.995, 0.95, 1.0, False],
    ["kind", "rare", 4, 0.5, 0.2, 0.8, 0.97, None, False],
]
PICTURE = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


def new_run(name="r", **settings):
    """A run with its settings alone."""
    paths = RunPaths(name)
    write_json(paths.config, settings_to_json(preset("demo", **settings)))
    return paths


def progress(paths, state=RUNNING, steps=None, **more):
    now = time.time()
    steps = {"01_eda": "finished", "02_folds": "running"} if steps is None else steps
    write_progress(paths, RunProgress(state, now - 90, now, steps, **more))


def log_fold(paths, number, steps=40, max_steps=40, lines="\n"):
    """The log of a training; `lines` ends it."""
    log = pd.DataFrame({"step": range(1, steps + 1), "max_steps": max_steps})
    log = log.assign(epoch=log["step"] / 20, loss=1 / log["step"], memory_gib=1.25)
    log = log.assign(seconds_per_step=2.0, ended=time.time())
    write_csv(paths.fold(number).train_log, log)
    with paths.fold(number).train_log.open("a") as file:
        file.write(lines.removeprefix("\n"))


def train_fold(paths, number, peaks=(1.5,), epochs=2):
    log_fold(paths, number)
    scores = [{"epoch": i + 1.0, "accuracy": 0.9 + i / 50, "log_loss": 0.3} for i in range(epochs)]
    meta = {"seconds": 80.0, "peak_memory_gib": list(peaks), "epochs": scores}
    write_json(paths.fold(number).meta, meta)
    archive(paths, f"03_train_fold-fold{number}", 100.0)


def result(title, columns=(), rows=(), words="", cards=(), figure=""):
    return {
        "title": title,
        "words": words,
        "columns": list(columns),
        "rows": list(rows),
        "cards": list(cards),
        "figure": figure,
    }


def baselines(count=3):
    names = "model accuracy low high not_yes_no log_loss calibration_error mcnemar_p"
    lines = [list(line) for line in BASELINES[:count]]  # tests change them
    return result("Baselines", names.split(), lines)


def folds(rows=900):
    names = "fold rows accuracy low high log_loss minutes peak_gib"
    lines = [[name, rows, 0.97, 0.957, 0.979, 0.082, 2.8, 1.1] for name in (0, "all")]
    return result("Folds", names.split(), lines)


def groups():
    names = "by group rows accuracy low high rest p_worse worse"
    return result("Groups", names.split(), GROUPS)


def mistakes(count=6, words=lambda text, number: text):
    """Wrong rows of two folds and kinds, with falling confidence."""
    lines, cards = [], []
    for i in range(count):
        right, chosen = "abcd"[i % 4], "abcd"[(i + 1) % 4]
        kind = ["yes/no", "colour"][i % 2]
        p = 0.95 - 0.1 * i
        lines.append([words(f"row{i}", i), right, chosen, i % 2, words(kind, i), p])
        options = [
            {
                "letter": letter,
                "text": words(f"옵션 {letter}{i}", i),
                "is_right": letter == right,
                "is_chosen": letter == chosen,
                "probability": p if letter == chosen else None,
            }
            for letter in "abcd"
        ]
        question = words(f"What colour is number {i}?", i)
        card = {"picture": PICTURE, "side_px": 160, "question": question, "options": options}
        cards.append(card)
    columns = ["id", "answer", "chosen", "fold", "kind", "p_chosen"]
    return result("Worst mistakes", columns, lines, "the worst", cards)


def suspects():
    """Labels that look wrong: one rejected, one contradicted, and one without a card."""
    of_mistakes = mistakes(2)
    lines = []
    for number, reason in enumerate(("rejected", "row7, row8", "rejected")):
        lines.append([f"suspect{number}", "a", "b", 0, 0.9 - 0.1 * number, reason])
    columns = ["id", "answer", "chosen", "fold", "p_chosen", "reason"]
    return result("Suspect labels", columns, lines, "3 of 9", of_mistakes["cards"])


def write_results(paths, *results):
    write_json(paths.results, list(results))


def whole_run(name="r", words=lambda text, number: text):
    """A run that is through."""
    paths = new_run(name, n_folds=2, data=words("data", 3))
    for number in (0, 1):
        train_fold(paths, number)
    for name in ("01_eda", "06_analysis"):
        archive(paths, name, 10.0)
    letters = result(
        "Letters",
        ["letter", "right in train", "chosen in test"],
        [[letter, 0.25, 0.2 + i / 30] for i, letter in enumerate("abcd")],
    )
    confusion = result(
        "Confusion",
        ["right", *"abcd"],
        [[letter, *([9, 1, 0, 0] if letter == "a" else [0, 1, 9, 0])] for letter in "abcd"],
    )
    positions = result(
        "Positions",
        ["position", "excess", "low", "high"],
        [[letter, i / 100 - 0.01, -0.02, 0.03] for i, letter in enumerate("abcd")],
    )
    orders = result(
        "Orders",
        ["order", "accuracy", "against_mean", "low", "high", "changed"],
        [[f"shifted by {i}", 0.96, 0.01 - i / 100, -0.02, 0.03, 0.04] for i in range(4)],
    )
    reliability = result(
        "Reliability",
        ["probabilities", "confidence", "accuracy", "rows"],
        [["as scored", 0.6, 0.55, 30], ["as scored", 0.97, 0.98, 800]],
    )
    other = result(words("My own", 5), [words("column", 6), "x"], [[words("cell", 7), 1.5]])
    write_results(
        paths,
        folds(),
        baselines(),
        groups(),
        confusion,
        letters,
        positions,
        orders,
        reliability,
        other,
        mistakes(words=words),
        suspects(),
    )
    progress(paths, "finished", {"01_eda": "finished", "06_analysis": "finished"})
    return paths

"""Render the templates into the page of a run."""

import time
from pathlib import Path
from typing import Any

from vqa_utils.analysis._templates import render
from vqa_utils.analysis.page.learning import fold_name, learning_curves, memory_bars
from vqa_utils.analysis.page.numbers import SPACE, decimals, gib, minutes, percent
from vqa_utils.analysis.page.parts import OWN_PLACE, part_of, parts_of
from vqa_utils.analysis.page.progress import FINISHED, RUNNING, RunProgress, read_progress
from vqa_utils.analysis.page.results import REJECTED, Record, Result, read_results
from vqa_utils.analysis.page.run_facts import (
    Notebook,
    folds_of,
    notebooks_of,
    settings_of_run,
    versions_of,
)
from vqa_utils.analysis.page.verdict import verdict_of
from vqa_utils.analysis.page.words import WORDS
from vqa_utils.artifacts.files import write_text
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.run import read_config
from vqa_utils.config import Config
from vqa_utils.language import called, speaking
from vqa_utils.presets import differences

REFRESH_SECONDS = 20  # between two loads of the page while its run goes on
CLOCK = "%Y-%m-%d %H:%M"


def write_page(paths: RunPaths) -> Path:
    """Write the page of a run, whatever there is of it.

    Returns:
        The page's path.
    """
    write_text(paths.page, render_page(paths, read_config(paths)))
    return paths.page


def render_page(paths: RunPaths, config: Config) -> str:
    """Render the page of a run as HTML that needs no other file, in the run's language."""
    with speaking(config.lang):
        return _render(paths, config)


def _render(paths: RunPaths, config: Config) -> str:
    progress = read_progress(paths)
    results = read_results(paths)
    notebooks = notebooks_of(paths, progress)
    folds = folds_of(paths, config)
    is_running = progress is not None and progress.state == RUNNING
    return render(
        "page/page.html.jinja",
        lang=config.lang,
        words=WORDS,
        run_id=paths.run_id,
        refresh=REFRESH_SECONDS if is_running else None,
        progress=progress,
        status=_describe_progress(progress),
        verdict=verdict_of(results),
        made=_describe_making(config, progress, notebooks),
        parts=parts_of(paths, results),
        own={key: part_of(paths, results[key]) for key in OWN_PLACE if key in results},
        mistakes=_mistakes(results.get("worst_mistakes")),
        suspects=_suspects(results.get("suspect_labels")),
        notebooks=notebooks,
        folds=folds,
        fold_name=fold_name,
        at_work=[fold for fold in folds if is_running and not fold.is_trained and fold.last],
        curves=learning_curves(folds),
        memory=memory_bars(folds, progress.gpus if progress else ()),
        has_gpus=bool(progress and progress.gpus),
        settings=settings_of_run(config),
        versions=versions_of(paths),
        minutes=minutes,
        gib=gib,
        decimals=decimals,
        percent=percent,
    )


def _describe_progress(progress: RunProgress | None) -> list[str]:
    """Say how far a run is, in short texts."""
    if progress is None:
        return []
    done = sum(state == FINISHED for state in progress.steps.values())
    texts = [
        WORDS[progress.state],
        WORDS["steps_done"].format(done=done, all=len(progress.steps)),
        WORDS["started"].format(time=_clock(progress.started)),
    ]
    if progress.state == RUNNING and progress.expected_end is not None:
        left = max(0.0, progress.expected_end - progress.written) / 60
        texts.append(WORDS["time_left"].format(duration=minutes(left)))
    texts.append(WORDS["written"].format(time=_clock(progress.written)))
    return texts


def _describe_making(
    config: Config, progress: RunProgress | None, notebooks: list[Notebook]
) -> dict[str, str]:
    """How the run was made, by the words for it."""
    values = {line.name: line.value for line in settings_of_run(config)}
    changes = [f"{name}={values[name]}" for name in differences(config)]
    made = {
        "preset": config.preset,
        "changes": ", ".join(changes) or WORDS["no_changes"],
        "model": values["model"],
        "data": values["data"],
        "fold_count": str(len(config.fold_numbers)),
    }
    seconds = sum(notebook.seconds for notebook in notebooks)
    if seconds:
        made["notebook_minutes"] = minutes(seconds / 60)
    if progress is not None:
        made["wall_minutes"] = minutes((progress.written - progress.started) / 60)
    return {WORDS[name]: value for name, value in made.items() if value}


def _mistakes(result: Result | None) -> list[dict[str, Any]]:
    """The cards of the gallery with what its filters ask for."""
    if result is None:
        return []
    mistakes = []
    for record, card in zip(result.records, result.cards, strict=True):
        mistakes.append(_with_filters(record, card))
    return mistakes


def _suspects(result: Result | None) -> list[dict[str, Any]]:
    """The cards of labels that look wrong, with the reason."""
    if result is None:
        return []
    suspects = []
    for record, card in zip(result.records, result.cards, strict=False):  # the first have cards
        reason = record["reason"]
        told = WORDS["rejected"] if reason == REJECTED else WORDS["contradicts"].format(ids=reason)
        suspects.append({**_with_filters(record, card), "kind": told})
    return suspects


def _with_filters(record: Record, card: Record) -> dict[str, Any]:
    fold = record.get("fold")
    return {
        **card,
        "id": record["id"],
        "fold": "" if fold is None else str(fold),
        "kind": called(record.get("kind") or ""),
        "answer": record.get("answer") or "",
        "confidence": record.get("p_chosen"),
    }


def _clock(seconds: float) -> str:
    return time.strftime(CLOCK, time.localtime(seconds)).replace(" ", SPACE)

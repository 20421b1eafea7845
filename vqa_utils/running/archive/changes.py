"""Say what has changed since the notebooks ran that a command reuses.

Changed code runs nothing again by itself: a comma in the package would cost hours of training.
"""

from collections.abc import Iterable, Sequence

from rich.console import Console

from vqa_utils.artifacts.timings import time_table
from vqa_utils.errors import RunError, listed
from vqa_utils.running._markers import DONE, Markers, notebook_of
from vqa_utils.running.archive.origin import differences, origin_of
from vqa_utils.running.stages import SCORING, TRAINING, Step

MOST_NAMED = 12  # changed files and libraries; another version of the project changes many more


def tell_changes(
    markers: Markers,
    steps: Sequence[Step],
    earlier: Sequence[Step],
    console: Console,
    *,
    strict: bool,
) -> None:
    """Print which code and libraries have changed, and the command that runs the notebooks again.

    Args:
        markers: of the run.
        steps: of a command, as far as complete ones are reused; a training among them may go on
            from a checkpoint.
        earlier: the complete steps that it builds on.
        console: the terminal.
        strict: refuse instead.

    Raises:
        RunError: with all changes, if it is to be refused.
    """
    trainings = [Step(TRAINING, step.fold) for step in earlier if step.stage == SCORING]
    earlier = list(dict.fromkeys([*trainings, *earlier]))
    since = _changes_by_step(markers, steps, earlier)
    if not since:
        return
    by_change: dict[str, list[Step]] = {}
    for step, changes in since.items():
        for change in changes:
            by_change.setdefault(change, []).append(step)
    lines = [f"{change}: since {_names(steps)}" for change, steps in by_change.items()]
    if len(lines) > MOST_NAMED:
        lines = [*lines[:MOST_NAMED], f"and {len(lines) - MOST_NAMED} more"]
    first = min(step.stage.name for step in since)
    again = _describe_again(markers, [*earlier, *steps], first)
    if strict:
        title = "--strict: expected code and libraries as of the earlier notebooks, found others:"
        raise RunError(f"{listed(title, lines)}\n{again}")
    title = "changed since, and the earlier notebooks are used as they are:"
    console.print(f"{listed(title, lines)}\n{again}", style="yellow", markup=False)


def _changes_by_step(
    markers: Markers, steps: Iterable[Step], earlier: Iterable[Step]
) -> dict[Step, list[str]]:
    """Name the changes since each step that does not run again from its beginning."""
    origins = {step: markers.origin(step) for step in earlier}
    for step in steps:
        is_done = markers.state(step) == DONE
        origins[step] = markers.origin(step) if is_done else markers.begun(step)
    found = {}
    for step, origin in origins.items():
        if origin is None:
            continue
        now = origin_of(notebook_of(step))
        if origin["notebook"] != now["notebook"]:  # of a training that has begun
            changes = [f"{notebook_of(step).name}, so that it begins anew"]
        else:
            changes = differences(origin, now)
        if changes:
            found[step] = changes
    return found


def _describe_again(markers: Markers, steps: Iterable[Step], first: str) -> str:
    """Say how to run the steps from a stage on again, and how long they took."""
    due = [step for step in steps if step.stage.name >= first]
    table = time_table(markers.paths.notebooks, [step.name for step in due])
    minutes = table["total"].iloc[-1] / 60  # of the line `all`
    run = markers.paths.run_id
    return (
        f"python run_all.py --resume --run-id {run} --force --from {first} runs "
        f"{_names(due)} again ({minutes:.1f} minutes the last time)"
    )


def _names(steps: Iterable[Step]) -> str:
    """Name steps, those of a stage together: "02_folds, 03_train_fold (fold 0, 1)"."""
    folds: dict[str, list[str]] = {}
    for step in steps:
        numbers = folds.setdefault(step.stage.name, [])
        if step.fold is not None:
            numbers.append(str(step.fold))
    names = []
    for name, numbers in folds.items():
        names.append(f"{name} (fold {', '.join(numbers)})" if numbers else name)
    return ", ".join(names)

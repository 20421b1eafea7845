"""Run the points of a sweep one after the other, each an ordinary run.

So a stopped sweep goes on from there, and a point shows up in every comparison.
"""

from collections.abc import Callable, Sequence

import pandas as pd
from rich.console import Console

from vqa_utils.artifacts.lock import locked
from vqa_utils.errors import VqaError
from vqa_utils.experiments.comparison import compare_runs
from vqa_utils.experiments.sweep_points import Point, refuse
from vqa_utils.planning.machine.check import check_run
from vqa_utils.planning.machine.gpus import find_gpus
from vqa_utils.running.resolution import with_data
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import Stage, Step, select_steps
from vqa_utils.running.terminal.events import tell

FINISHED = "finished"


def sweep_table(points: Sequence[Point], stages: Sequence[Stage], console: Console) -> pd.DataFrame:
    """Tabulate the points: `run` and `state`."""
    lines = [(point.run_id, state(point, stages, console)) for point in points]
    return pd.DataFrame(lines, columns=["run", "state"])


def state(point: Point, stages: Sequence[Stage], console: Console) -> str:
    """Describe the progress of a point under its present settings.

    Returns:
        `new`, `finished`, or the number of complete notebooks.
    """
    if not point.paths.config.exists():
        return "new"
    runner = Runner(point.paths, with_data(point.config), console, reuse=True)
    steps = select_steps(stages, point.config.adapter_numbers)
    done = _steps_done(runner, steps)
    if len(done) == len(steps):
        return FINISHED
    return f"{len(done)} of {len(steps)} notebooks are complete"


def _steps_done(runner: Runner, steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps if runner.is_done(step)]


def take_over(
    point: Point, others: Sequence[Point], stages: Sequence[Stage], console: Console
) -> None:
    """Copy the complete steps of another point with the same adapters into a point's run.

    A step is copied if its marker has the same data, inputs, and settings as far as they count for
    the step. Nothing is copied unless a training is saved by it.
    """
    alike = []
    for other in others:
        is_alike = other.config.training_hash == point.config.training_hash
        # The markers decide; this only avoids hashing the files of points that cannot help
        if is_alike and other.paths.config.exists():
            alike.append(other)
    if not alike:
        return  # before anything is hashed
    runner = Runner(point.paths, with_data(point.config), console, reuse=True)
    steps = select_steps(stages, point.config.adapter_numbers)
    done = _steps_done(runner, steps)
    due = [step for step in steps if step not in done]
    source = None
    copied: list[Step] = []
    for other in alike:
        candidate = runner.looking_at(other.paths)
        available = _steps_done(candidate, due)
        if len(available) > len(copied):
            source = candidate
            copied = available
    if source is None or not any(step.stage.trains for step in copied):
        return
    for step in copied:
        runner.take_over(step, source)
    names = ", ".join(step.name for step in copied)
    console.print(f"taken over from {source.paths.run_id}: {names}", markup=False)


def run_sweep(
    points: Sequence[Point],
    stages: Sequence[Stage],
    run: Callable[[Point], None],
    console: Console,
    *,
    reuse: bool,
) -> None:
    """Run the points one after the other, and compare them. An error ends its own point alone.

    Args:
        points: of `read_points`.
        stages: the series.
        run: starts the run of a point, or goes on with it.
        console: the terminal.
        reuse: keep a finished point, and let a point take over the steps of others.

    Raises:
        SweepError: the machine cannot run some of the points, and none was started; or some failed.
    """
    _check_machine(points)
    failed = []
    for number, point in enumerate(points, start=1):
        title = f"\npoint {number} of {len(points)}: {point.run_id}"
        console.print(title, style="bold", markup=False)
        try:
            if reuse and state(point, stages, console) == FINISHED:
                console.print("finished before, reused")
                continue
            if reuse:
                others = [other for other in points if other != point]
                with locked(point.paths):  # `run` takes the lock again
                    take_over(point, others, stages, console)
            run(point)
        except VqaError as error:
            console.print(f"error: {error}", style="red", markup=False)
            tell(console, "point_failed", run=point.run_id, message=str(error))
            failed.append(f"{point.run_id}: {error}")
    console.print()
    started = [point.run_id for point in points if point.paths.config.exists()]
    if started:
        compare_runs(console, started)
    title = f"{len(failed)} of {len(points)} points failed; the same command tries them again"
    refuse(title, failed)


def _check_machine(points: Sequence[Point]) -> None:
    """Check every point against this machine, before the first one starts."""
    points_with: dict[str, list[str]] = {}  # by problem, as many points share one
    for point in points:
        try:
            check_run(with_data(point.config), find_gpus())
        except VqaError as error:
            points_with.setdefault(str(error), []).append(point.run_id)
    problems = [f"{', '.join(names)}: {problem}" for problem, names in points_with.items()]
    refuse("points that cannot run here", problems)

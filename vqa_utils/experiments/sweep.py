"""Runs the points of a sweep one after the other. Each is an ordinary run, so a stopped sweep goes on where it was."""

from collections.abc import Callable, Sequence

import pandas as pd
from rich.console import Console

from vqa_utils.errors import VqaError
from vqa_utils.experiments.comparison import compare_runs
from vqa_utils.experiments.sweep_points import Point, refuse
from vqa_utils.planning.gpus import find_gpus
from vqa_utils.planning.machine_check import check_run
from vqa_utils.running.lock import locked
from vqa_utils.running.resolution import with_data
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import Stage, select_steps

FINISHED = "finished"


def sweep_table(points: Sequence[Point], stages: Sequence[Stage], console: Console) -> pd.DataFrame:
    """A line a point: its `run` and `state`."""
    return pd.DataFrame(
        [(point.run_id, state(point, stages, console)) for point in points],
        columns=["run", "state"],
    )


def state(point: Point, stages: Sequence[Stage], console: Console) -> str:
    """`new`, `finished`, or how many of the point's notebooks are whole, with the settings that the file gives it now."""
    if not point.paths.config.exists():
        return "new"
    runner = Runner(point.paths, with_data(point.config), console, reuse=True)
    steps = select_steps(stages, point.config.adapter_numbers)
    done = sum(runner.state(step) == "done" for step in steps)
    return FINISHED if done == len(steps) else f"{done} of {len(steps)} notebooks are whole"


def take_over(
    point: Point, others: Sequence[Point], stages: Sequence[Stage], console: Console
) -> None:
    """Copy into a point's run what another point has made of the same data, with the same settings as far as they count for it.

    The markers prove that; nothing is taken where no training is saved by it.
    """
    alike = [
        other
        for other in others
        if other.config.training_hash == point.config.training_hash and other.paths.config.exists()
    ]
    if not alike:
        return
    runner = Runner(point.paths, with_data(point.config), console, reuse=True)
    due = [
        step
        for step in select_steps(stages, point.config.adapter_numbers)
        if runner.state(step) != "done"
    ]
    sources = [runner.looking_at(other.paths) for other in alike]
    whole = [[step for step in due if source.state(step) == "done"] for source in sources]
    source, steps = max(zip(sources, whole, strict=True), key=lambda pair: len(pair[1]))
    if any(step.stage.trains for step in steps):
        for step in steps:
            runner.take_over(step, source)
        console.print(
            f"taken over from {source.paths.run_id}: {', '.join(step.name for step in steps)}",
            markup=False,
        )


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
        run: starts a point's run, or goes on with it.
        reuse: leave a finished point as it is, and let the others take over what one has made already.

    Raises:
        SweepError: the machine cannot run some of the points, and none was started; or some failed.
    """
    _check_machine(points)
    failed = []
    for number, point in enumerate(points, 1):
        console.print(
            f"\npoint {number} of {len(points)}: {point.run_id}", style="bold", markup=False
        )
        try:
            if reuse and state(point, stages, console) == FINISHED:
                console.print("finished before, reused")
                continue
            if reuse:
                with locked(point.paths):
                    take_over(point, [other for other in points if other != point], stages, console)
            run(point)
        except VqaError as error:
            console.print(f"error: {error}", style="red", markup=False)
            failed.append(f"{point.run_id}: {error}")
    console.print()
    started = [point.run_id for point in points if point.paths.config.exists()]
    if started:
        compare_runs(console, started)
    refuse(
        f"{len(failed)} of {len(points)} points failed; the same command tries them again", failed
    )


def _check_machine(points: Sequence[Point]) -> None:
    problems: dict[str, list[str]] = {}  # many points have the same
    for point in points:
        try:
            check_run(with_data(point.config), find_gpus())
        except VqaError as error:
            problems.setdefault(str(error), []).append(point.run_id)
    refuse(
        "points that cannot run here",
        [f"{', '.join(names)}: {message}" for message, names in problems.items()],
    )

"""Execute the steps of a command: checks before, results after."""

import time
from collections.abc import Sequence

from vqa_utils.artifacts.paths import shown
from vqa_utils.artifacts.timings import SPLIT, time_table
from vqa_utils.ensembling.members import scored_adapters
from vqa_utils.planning.machine.disk import check_disk
from vqa_utils.running.auto_settings import rows_here
from vqa_utils.running.command_line._types import STALL_SECONDS
from vqa_utils.running.notebooks.side_by_side import fold_environments
from vqa_utils.running.resolution import start_run, with_data
from vqa_utils.running.run_clock import RunClock
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import (
    ANALYSIS,
    ENSEMBLE,
    STAGES,
    Step,
    built_on,
    select_steps,
    takes_folds_as_they_are,
)
from vqa_utils.running.terminal.events import tell_started
from vqa_utils.running.terminal.tables import print_table


def execute_steps(
    runner: Runner,
    steps: Sequence[Step],
    deadline: float | None = None,
    stall_seconds: float = STALL_SECONDS,
    *,
    strict: bool = False,
) -> None:
    """Check earlier steps, write the run's settings, execute its steps, and print the results.

    Args:
        runner: of the run.
        steps: to execute, in their order.
        deadline: the end of the time budget, in seconds since 1970.
        stall_seconds: without progress, until a notebook is named.
        strict: refuse if code or libraries have changed since the notebooks that are reused.

    Raises:
        VqaError: the data, earlier steps or a notebook have problems; the time budget is over, and
            there is nothing to submit.
    """
    from vqa_utils.running.run_page import RunPage  # imports jinja2, which `status` does not need

    paths, console = runner.paths, runner.console
    runner.config = config = with_data(runner.config)
    # Before `start_run` writes: a refused command leaves the run's settings as they were
    runner.check_whole(built_on(steps, scored_adapters(paths, config)))
    runner.tell_changes(steps, strict=strict)
    _check_disk(runner, steps)
    start_run(paths, config, check_folds=takes_folds_as_they_are(steps))
    console.print(f"run {paths.run_id}: {shown(paths.folder)}")
    tell_started(console, paths, config)
    start = time.time()
    runner.clock = RunClock(paths, config, console, rows_here(config), deadline, stall_seconds)
    with RunPage(paths, runner.clock, steps, console):
        runner.run(steps)
    _print_outcome(runner, steps, time.time() - start)


def _print_outcome(runner: Runner, steps: Sequence[Step], passed_s: float) -> None:
    """Print where the time went, the results, and the end.

    Raises:
        RunError: the time budget is over, and there is nothing to submit.
    """
    # Imports scikit-learn
    from vqa_utils.running.terminal.results import print_end, print_results

    paths, config, console = runner.paths, runner.config, runner.console
    times = time_table(paths.notebooks, [step.name for step in steps])
    whole_seconds = times.round().convert_dtypes()
    print_table(console, "where the time went (seconds)", whole_seconds, drop=SPLIT)
    ends_with_results = steps[-1].stage in (ENSEMBLE, ANALYSIS)
    has_results = ends_with_results and Step(ENSEMBLE) not in runner.clock.left_out
    if has_results:
        print_results(paths, config, console)
    console.print(_describe_minutes(passed_s, float(times["total"].iloc[-1])))
    runner.clock.conclude()
    all_steps = select_steps(STAGES, config.adapter_numbers)
    is_whole = all(runner.is_done(step) for step in all_steps)
    print_end(paths, config, console, is_whole=is_whole, has_results=has_results)


def _describe_minutes(passed_s: float, notebooks_s: float) -> str:
    """Say how long a command took, and why its notebooks took longer together."""
    minutes = f"{passed_s / 60:.1f} minutes"
    if notebooks_s <= passed_s:
        return minutes
    return f"{minutes}; {notebooks_s / 60:.1f} of all notebooks, as folds ran side by side"


def _check_disk(runner: Runner, steps: Sequence[Step]) -> None:
    paths, config = runner.paths, runner.config
    due = [step for step in steps if not runner.is_reused(step)]
    untrained = [step.fold for step in due if step.stage.trains and step.fold is not None]
    if runner.cluster:
        processes = runner.cluster.places(len(untrained))
    else:
        processes = len(fold_environments(config, len(untrained)))
    at_once = max(config.sharing_folds, processes)
    rows = rows_here(config)
    check_disk(paths, config, untrained, at_once, sum(rows) if rows else 0)

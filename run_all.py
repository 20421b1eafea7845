#!/usr/bin/env python3
"""Run the notebook series: explore, fold, train and score each fold, ensemble, analyse.

Every executed notebook is archived in the run's folder.

python run_all.py                              a small demo, on any machine
python run_all.py --preset safe --data DIR     Qwen3-VL-30B-A3B on two T4 GPUs
python run_all.py --resume                     go on after a stop
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vqa_utils.artifacts.paths import RUNS_VARIABLE, runs_dir, shown
from vqa_utils.config import parse_settings
from vqa_utils.errors import Stopped, VqaError
from vqa_utils.running.command_line.arguments import PROGRAM, parse_arguments
from vqa_utils.running.stages import STAGES, Step, select_steps

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.console import Console

    from vqa_utils.artifacts.paths import RunPaths
    from vqa_utils.config import Config
    from vqa_utils.running.cluster.ray_cluster import RayCluster


def main() -> None:
    """Execute one command; an error for the user to mend is one message and exit status 1."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":  # of a locale such as ko_KR.eucKR
        sys.exit(f"error: expected Python in UTF-8, found {encoding}; set PYTHONUTF8=1")
    args = parse_arguments(__doc__)
    os.environ[RUNS_VARIABLE] = str(runs_dir())  # absolute, as the notebooks run in another folder
    # After the arguments, so that --help answers at once
    from vqa_utils.running.terminal.console import make_console

    console = make_console(quiet=args.quiet, events=args.json)
    try:
        run(args, console)
    except VqaError as error:
        end_with("error", str(error), 1, console)
    except OSError as error:
        from vqa_utils.planning.machine.disk import describe_full, is_full

        if not is_full(error):
            raise
        message = describe_full(runs_dir(), getattr(args, "run_id", None))
        end_with("error", message, 1, console)
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        end_with("stopped", describe_stop(args), 128 + number, console)  # as shells report it


def end_with(event: str, message: str, exit_status: int, console: "Console") -> NoReturn:
    """Print a message, tell it as an event, and exit."""
    from vqa_utils.running.terminal.events import tell

    if event == "error":
        console.print(f"error: {message}", style="red", markup=False)
    else:
        console.print(message, style="yellow", markup=False)
    tell(console, event, message=message, exit_status=exit_status)
    sys.exit(exit_status)


def run(args: "Namespace", console: "Console") -> None:
    """Execute the command."""
    COMMANDS[args.command](args, console)


def describe_stop(args: "Namespace") -> str:
    """Say how to go on with a stopped command, if there is something to go on with."""
    changes_nothing = ("check", "plan", "status", "open", "compare", "presets", "settings")
    if args.command in changes_nothing or getattr(args, "dry_run", False):
        return "stopped"
    if args.command == "blend":
        return "stopped; start it again with another --run-id"
    if args.command != "run":
        return "stopped; the same command goes on from here"
    run_id = f" --run-id {args.run_id}" if args.run_id else ""
    return f"stopped; {PROGRAM} --resume{run_id} goes on from here"


def run_series(args: "Namespace", console: "Console") -> None:
    """Start a run, or go on with one."""
    from vqa_utils.planning.machine.gpus import find_gpus
    from vqa_utils.running.auto_settings import for_machine
    from vqa_utils.running.cluster.opening import cluster_of
    from vqa_utils.running.notebooks.kernels import clean_environment
    from vqa_utils.running.resolution import resolve_run, tell_toy
    from vqa_utils.sharing.lender import lender_ahead

    paths, config = resolve_run(args, new_id=time.strftime("%Y%m%d-%H%M%S"))
    tell_toy(args, config, console)
    with cluster_of(args, config, console) as cluster:
        if cluster:
            config = cluster.one_fold_a_place(config)
        gpus = cluster.gpus if cluster else find_gpus()
        config = for_machine(config, gpus, console, parse_settings(args.set))
        clean_environment()  # a lender inherits it
        folds = {step.fold for step in chosen_steps(args, config)} - {None}
        lends = config.sharing_folds > 1 and len(folds) > 1 and not cluster
        with lender_ahead(lends and not args.dry_run):
            run_steps(args, paths, config, console, cluster)


def show_plan(args: "Namespace", console: "Console") -> None:
    """Print the memory plan, and the expected minutes if the run fits; else exit with status 1."""
    from vqa_utils.planning.machine.gpus import planned_gpus
    from vqa_utils.running.checking import print_whole_plan
    from vqa_utils.running.resolution import resolve_run

    _, config = resolve_run(args, new_id="planned")
    if not print_whole_plan(config, planned_gpus(args.t4), console, parse_settings(args.set)):
        sys.exit(1)


def check(args: "Namespace", console: "Console") -> None:
    """Check data, model and memory of a run; exit with status 1 if it would be refused."""
    from vqa_utils.planning.machine.gpus import planned_gpus
    from vqa_utils.running.checking import check_inputs
    from vqa_utils.running.resolution import resolve_run, tell_toy

    _, config = resolve_run(args, new_id="checked")
    tell_toy(args, config, console)
    if not check_inputs(config, planned_gpus(args.t4), console, parse_settings(args.set)):
        sys.exit(1)


def show_status(args: "Namespace", console: "Console") -> None:
    """Print the state of each notebook of a run."""
    from vqa_utils.running.resolution import resolve_run
    from vqa_utils.running.runner import Runner
    from vqa_utils.running.status import status_table
    from vqa_utils.running.terminal.tables import print_table

    paths, config = resolve_run(args, new_id="")
    runner = Runner(paths, config, console, reuse=True)
    steps = select_steps(STAGES, config.adapter_numbers)
    print_table(console, f"run {paths.run_id}", status_table(runner, steps), drop=["parameters"])
    runner.tell_changes(steps)


def open_page(args: "Namespace", console: "Console") -> None:
    """Show the page of a run in the browser, and print its path."""
    from vqa_utils.running.resolution import resolve_run
    from vqa_utils.running.run_page import show_in_browser

    paths, _ = resolve_run(args, new_id="")
    show_in_browser(paths)
    console.print(shown(paths.page), markup=False, soft_wrap=True)


def predict_test(args: "Namespace", console: "Console") -> None:
    """Answer another test set with the adapters of a run."""
    from vqa_utils.artifacts.lock import locked
    from vqa_utils.planning.machine.check import check_run
    from vqa_utils.planning.machine.gpus import find_gpus
    from vqa_utils.running.auto_settings import for_machine
    from vqa_utils.running.notebooks.kernels import clean_environment
    from vqa_utils.running.prediction import predict
    from vqa_utils.running.resolution import resolve_run
    from vqa_utils.running.terminal.console import END
    from vqa_utils.running.terminal.events import tell, tell_started
    from vqa_utils.sharing.lender import lender_ahead

    paths, config = resolve_run(args, new_id="")
    config = for_machine(config, find_gpus(), console, parse_settings(args.set))
    check_run(config, find_gpus())
    tell_started(console, paths, config)
    clean_environment()  # a lender inherits it
    with locked(paths), lender_ahead(config.sharing_folds > 1):
        submission = predict(paths, config, Path(args.folder), console)
    console.print(f"submission: {shown(submission)}", style=END)
    tell(console, "finished", run=paths.run_id, submission=str(submission.absolute()))


def blend(args: "Namespace", console: "Console") -> None:
    """Blend finished runs into a folder of its own."""
    from vqa_utils.experiments.blends import blend_runs

    new_id = time.strftime("%Y%m%d-%H%M%S-blend")
    blend_runs(args.runs, new_id if args.run_id is None else args.run_id, console)


def sweep(args: "Namespace", console: "Console") -> None:
    """Show the points of a sweep, or run them."""
    from vqa_utils.experiments.sweep import run_sweep, sweep_table
    from vqa_utils.experiments.sweep_points import Point, read_points
    from vqa_utils.planning.machine.gpus import find_gpus
    from vqa_utils.running.terminal.tables import print_table

    points = read_points(Path(args.file), find_gpus(), console)
    if args.dry_run:
        print_table(console, args.file, sweep_table(points, STAGES, console))
        return

    def run_point(point: Point) -> None:
        run_steps(args, point.paths, point.config, console)

    run_sweep(points, STAGES, run_point, console, reuse=not args.force)


def compare(args: "Namespace", console: "Console") -> None:
    """Print the scores of finished runs side by side."""
    from vqa_utils.experiments.comparison import compare_runs

    compare_runs(console, args.runs)


def export(args: "Namespace", console: "Console") -> None:
    """Write what runs elsewhere: `prepare`, `export-kaggle` or `export-notebook`."""
    from vqa_utils.exporting.commands import EXPORTS
    from vqa_utils.running.resolution import resolve_run

    _, config = resolve_run(args, new_id="exported")
    console.print(EXPORTS[args.command](args, config))


def show_settings(args: "Namespace", console: "Console") -> None:
    """Print each setting with its default and its meaning."""
    from vqa_utils.running.terminal.tables import print_settings

    print_settings(console)


def show_presets(args: "Namespace", console: "Console") -> None:
    """Print the named settings."""
    from vqa_utils.running.terminal.tables import print_presets

    print_presets(console)


def chosen_steps(args: "Namespace", config: "Config") -> list[Step]:
    """Return the steps of a run that its command asks for."""
    return select_steps(
        STAGES, config.adapter_numbers, chosen=args.folds, only=args.only, start=args.start
    )


def run_steps(
    args: "Namespace",
    paths: "RunPaths",
    config: "Config",
    console: "Console",
    cluster: "RayCluster | None" = None,
) -> None:
    """Execute the due notebooks of a run; with --dry-run, show them."""
    import psutil

    from vqa_utils.artifacts.lock import locked
    from vqa_utils.running.checking import refuse_unfit
    from vqa_utils.running.resolution import with_data
    from vqa_utils.running.runner import Runner
    from vqa_utils.running.series import execute_steps
    from vqa_utils.running.status import status_table
    from vqa_utils.running.terminal.tables import print_table

    steps = chosen_steps(args, config)
    named = config.data
    config = with_data(config)
    if config.data != named:
        console.print(f"data: {config.data}")
    runner = Runner(
        paths,
        config,
        console,
        reuse=not args.force,
        ladder=not args.no_ladder,
        cell_timeout=args.cell_timeout,
    )
    runner.cluster = cluster
    if args.dry_run:
        print_table(
            console, f"run {paths.run_id}", status_table(runner, steps), drop=["parameters"]
        )
        runner.tell_changes(steps, strict=args.strict)
    refuse_unfit(runner, steps, looks_at_rows=args.dry_run)
    if args.dry_run:
        return
    deadline = None
    if args.time_budget:
        deadline = psutil.Process().create_time() + args.time_budget  # the imports count too
    with locked(paths):
        execute_steps(runner, steps, deadline, args.stall_timeout, strict=args.strict)


COMMANDS = {  # as vqa_utils/running/command_line/arguments.py names them
    "run": run_series,
    "check": check,
    "plan": show_plan,
    "status": show_status,
    "open": open_page,
    "predict": predict_test,
    "blend": blend,
    "sweep": sweep,
    "compare": compare,
    "prepare": export,
    "export-kaggle": export,
    "export-notebook": export,
    "presets": show_presets,
    "settings": show_settings,
}

if __name__ == "__main__":
    main()

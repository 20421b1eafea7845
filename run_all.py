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
from typing import TYPE_CHECKING

from vqa_utils.artifacts.paths import RUNS_VARIABLE, runs_dir, shown
from vqa_utils.config import parse_settings
from vqa_utils.errors import Stopped, VqaError
from vqa_utils.running.arguments import PROGRAM, changes_in, parse_arguments
from vqa_utils.running.stages import STAGES, select_steps

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.console import Console

    from vqa_utils.artifacts.paths import RunPaths
    from vqa_utils.config import Config
    from vqa_utils.planning.machine.gpus import Gpu
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

    console = make_console()
    try:
        run(args, console)
    except VqaError as error:
        console.print(f"error: {error}", style="red", markup=False)
        sys.exit(1)
    except OSError as error:
        from vqa_utils.planning.machine.disk import describe_full, is_full

        if not is_full(error):
            raise
        message = describe_full(runs_dir(), getattr(args, "run_id", None))
        console.print(f"error: {message}", style="red")
        sys.exit(1)
    except KeyboardInterrupt as stop:
        console.print(describe_stop(args), style="yellow", markup=False)
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        sys.exit(128 + number)  # as shells report it


def run(args: "Namespace", console: "Console") -> None:
    """Execute the command."""
    COMMANDS[args.command](args, console)


def describe_stop(args: "Namespace") -> str:
    """Say how to go on with a stopped command, if there is something to go on with."""
    if args.command in ("check", "plan", "status", "compare", "presets", "settings") or getattr(
        args, "dry_run", False
    ):
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
    from vqa_utils.running.resolution import resolve_run, tell_toy

    paths, config = resolve_run(args, new_id=time.strftime("%Y%m%d-%H%M%S"))
    tell_toy(args, config, console)
    with cluster_of(args, config, console) as cluster:
        if cluster:
            config = cluster.one_fold_a_place(config)
        gpus = cluster.gpus if cluster else find_gpus()
        config = for_machine(config, gpus, console, parse_settings(args.set))
        run_steps(args, paths, config, console, cluster)


def show_plan(args: "Namespace", console: "Console") -> None:
    """Print the memory plan, and the expected minutes if the run fits; else exit with status 1."""
    from vqa_utils.running.checking import print_whole_plan
    from vqa_utils.running.resolution import resolve_run

    _, config = resolve_run(args, new_id="planned")
    if not print_whole_plan(config, gpus_to_plan_for(args), console, parse_settings(args.set)):
        sys.exit(1)


def check(args: "Namespace", console: "Console") -> None:
    """Check data, model and memory of a run; exit with status 1 if it would be refused."""
    from vqa_utils.running.checking import check_inputs
    from vqa_utils.running.resolution import resolve_run, tell_toy

    _, config = resolve_run(args, new_id="checked")
    tell_toy(args, config, console)
    if not check_inputs(config, gpus_to_plan_for(args), console, parse_settings(args.set)):
        sys.exit(1)


def gpus_to_plan_for(args: "Namespace") -> "list[Gpu]":
    """Return those of --t4, or of this machine, or else two T4."""
    from vqa_utils.planning.machine.gpus import T4, find_gpus

    return [T4] * args.t4 or find_gpus() or [T4, T4]  # [] without --t4: its default is 0


def show_status(args: "Namespace", console: "Console") -> None:
    """Print the state of each notebook of a run."""
    from vqa_utils.running.resolution import resolve_run
    from vqa_utils.running.runner import Runner
    from vqa_utils.running.terminal.tables import print_table

    paths, config = resolve_run(args, new_id="")
    runner = Runner(paths, config, console, reuse=True)
    steps = select_steps(STAGES, config.adapter_numbers)
    print_table(console, f"run {paths.run_id}", runner.table(steps))
    runner.tell_changes(steps)


def predict_test(args: "Namespace", console: "Console") -> None:
    """Answer another test set with the adapters of a run."""
    from vqa_utils.artifacts.lock import locked
    from vqa_utils.planning.machine.check import check_run
    from vqa_utils.planning.machine.gpus import find_gpus
    from vqa_utils.running.auto_settings import for_machine
    from vqa_utils.running.prediction import predict
    from vqa_utils.running.resolution import resolve_run

    paths, config = resolve_run(args, new_id="")
    config = for_machine(config, find_gpus(), console, parse_settings(args.set))
    check_run(config, find_gpus())
    with locked(paths):
        submission = predict(paths, config, Path(args.folder), console)
    console.print(f"submission: {shown(submission)}")


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


def export_kaggle(args: "Namespace", console: "Console") -> None:
    """Write what the kaggle package takes to run the series on Kaggle."""
    from vqa_utils.exporting import kaggle
    from vqa_utils.running.resolution import resolve_run

    _, config = resolve_run(args, new_id="exported")
    export = kaggle.KaggleExport(
        user=args.user,
        name=args.name,
        competition=args.competition,
        model=args.kaggle_model,
        datasets=tuple(args.datasets),
        arguments=tuple(changes_in(args)),
        python=args.python if args.offline else "",
        goes_on=args.go_on,
    )
    folder = Path(args.folder).expanduser()
    kaggle.export_kaggle(folder, config, export)
    console.print(f"{shown(folder.resolve() / 'README.md')} has the commands that come next")


def export_notebook(args: "Namespace", console: "Console") -> None:
    """Write one notebook with the whole series."""
    from vqa_utils.exporting.one_notebook import export_notebook
    from vqa_utils.running.resolution import resolve_run

    _, config = resolve_run(args, new_id="exported")
    file = Path(args.file).expanduser()
    export_notebook(file, config)
    console.print(f"wrote {shown(file.resolve())}")


def show_settings(args: "Namespace", console: "Console") -> None:
    """Print each setting with its default and its meaning."""
    from vqa_utils.running.terminal.tables import print_settings

    print_settings(console)


def show_presets(args: "Namespace", console: "Console") -> None:
    """Print the named settings."""
    from vqa_utils.running.terminal.tables import print_presets

    print_presets(console)


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
    from vqa_utils.running.terminal.tables import print_table

    steps = select_steps(
        STAGES, config.adapter_numbers, chosen=args.folds, only=args.only, start=args.start
    )
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
        print_table(console, f"run {paths.run_id}", runner.table(steps))
        runner.tell_changes(steps, strict=args.strict)
    refuse_unfit(runner, steps, looks_at_rows=args.dry_run)
    if args.dry_run:
        return
    deadline = None
    if args.time_budget:
        deadline = psutil.Process().create_time() + args.time_budget  # the imports count too
    with locked(paths):
        execute_steps(runner, steps, deadline, args.stall_timeout, strict=args.strict)


COMMANDS = {  # as vqa_utils/running/arguments.py names them
    "run": run_series,
    "check": check,
    "plan": show_plan,
    "status": show_status,
    "predict": predict_test,
    "blend": blend,
    "sweep": sweep,
    "compare": compare,
    "export-kaggle": export_kaggle,
    "export-notebook": export_notebook,
    "presets": show_presets,
    "settings": show_settings,
}

if __name__ == "__main__":
    main()

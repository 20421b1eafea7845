#!/usr/bin/env python3
"""Run the notebook series: explore, fold, train and score each fold, ensemble, analyse. Every notebook is archived.

python run_all.py                              a small demo, on any machine
python run_all.py --preset safe --data DIR     Qwen3-VL-30B-A3B on two T4 GPUs
"""

import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_utils.artifacts.paths import RUNS_VARIABLE, runs_dir, shown
from vqa_utils.errors import RunError, VqaError
from vqa_utils.running.arguments import check_heeded, parse_arguments
from vqa_utils.running.stages import STAGES, select_steps

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.console import Console

    from vqa_utils.artifacts.paths import RunPaths
    from vqa_utils.config import Config


def main() -> None:
    """Do what the command line says; an error that a user can mend is one message and exit status 1."""
    args = parse_arguments(__doc__)
    os.environ[RUNS_VARIABLE] = str(runs_dir())  # absolute, as the notebooks run in another folder
    from rich.console import Console  # after the arguments, so that --help answers at once

    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 120)
    try:
        run(args, console)
    except VqaError as error:
        console.print(f"error: {error}", style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        again = f"--sweep {args.sweep}" if args.sweep else "--resume"
        console.print(f"stopped; python run_all.py {again} goes on from here", style="yellow")
        sys.exit(130)


def run(args: "Namespace", console: "Console") -> None:
    """Settle the run; look at presets or the memory plan, or go on with its steps."""
    check_heeded(args)
    from vqa_utils.planning.gpus import T4, find_gpus
    from vqa_utils.planning.plan import resolve_for_machine
    from vqa_utils.running.plan_table import print_forecast, print_plan
    from vqa_utils.running.resolution import resolve_run, rows_here

    if args.list_presets:
        from vqa_utils.running.terminal import print_presets

        print_presets(console)
        return
    if args.ensemble:
        from vqa_utils.experiments.blends import blend_runs

        blend_runs(args.ensemble, args.run_id or time.strftime("%Y%m%d-%H%M%S-ensemble"), console)
        return
    if args.compare is not None:
        from vqa_utils.experiments.comparison import compare_runs

        compare_runs(console, args.compare)
        return
    if args.sweep:
        run_points(args, console)
        return
    paths, config = resolve_run(args, new_id=time.strftime("%Y%m%d-%H%M%S"))
    if args.plan is None:
        run_steps(args, paths, resolve_for_machine(config, find_gpus()), console)
        return
    gpus = [T4] * args.plan or find_gpus() or [T4, T4]
    if print_plan(console, config, gpus).fits:
        print_forecast(console, config, gpus, rows_here(config))


def run_points(args: "Namespace", console: "Console") -> None:
    """Look at a sweep's points, or run them."""
    from vqa_utils.experiments.sweep import run_sweep, sweep_table
    from vqa_utils.experiments.sweep_points import read_points
    from vqa_utils.planning.gpus import find_gpus
    from vqa_utils.running.terminal import print_table

    points = read_points(Path(args.sweep), find_gpus())
    if args.dry_run:
        print_table(console, args.sweep, sweep_table(points, STAGES, console))
        return
    run_sweep(
        points,
        STAGES,
        lambda point: run_steps(args, point.paths, point.config, console),
        console,
        reuse=not args.force,
    )


def run_steps(args: "Namespace", paths: "RunPaths", config: "Config", console: "Console") -> None:
    """Look at a run's steps, predict, or execute what is due."""
    from vqa_utils.planning.gpus import find_gpus
    from vqa_utils.planning.machine_check import check_run
    from vqa_utils.running.lock import locked
    from vqa_utils.running.prediction import predict
    from vqa_utils.running.runner import Runner, execute_steps
    from vqa_utils.running.terminal import print_table

    if not re.fullmatch(r"(\d+(,\d+)*)?", args.folds):
        raise RunError(f"--folds: expected numbers such as 0,2, found {args.folds!r}")
    chosen = sorted({int(k) for k in args.folds.split(",") if k})
    steps = select_steps(
        STAGES, config.adapter_numbers, chosen=chosen, only=args.only, start=args.start
    )
    runner = Runner(paths, config, console, reuse=not args.force, ladder=not args.no_ladder)
    if args.status or args.dry_run:
        print_table(console, f"run {paths.run_id}", runner.table(steps))
        return
    check_run(config, find_gpus())
    with locked(paths):
        if args.predict:
            console.print(
                f"submission: {shown(predict(paths, config, Path(args.predict), console))}"
            )
        else:
            execute_steps(runner, steps)


if __name__ == "__main__":
    main()

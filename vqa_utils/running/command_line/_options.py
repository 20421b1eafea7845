"""Add the options of run_all.py's commands, but for those that export. Standard library only."""

import argparse

from vqa_utils.running.cluster.options import add_cluster_options
from vqa_utils.running.command_line._types import (
    STALL_SECONDS,
    fold_numbers,
    gpu_count,
    names,
    path,
    seconds,
)

PROGRAM = "python run_all.py"
Group = argparse._ArgumentGroup  # as add_argument_group returns it


def add_run_options(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument(
        "--run-id",
        metavar="RUN",
        help="name of its folder below runs/ (default: time and preset; with --resume the newest)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with a run; whatever is complete and unchanged is reused",
    )
    parser.add_argument(
        "--resume-from",
        type=path,
        metavar="DIR",
        help="copy a run from elsewhere, such as an earlier session's output, and go on with it",
    )
    parser.add_argument(
        "--time-budget",
        type=seconds,
        metavar="11.5h",
        help="end by then (h, min or s from now): training stops at a checkpoint in time to score "
        "the folds that are trained, and to write a submission; --resume goes on with the rest",
    )
    add_cluster_options(parser)
    add_execution_options(parser)


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--t4",
        type=gpu_count,
        default=0,
        metavar="N",
        help="plan for N T4 (default: the GPUs of this machine, or else two T4)",
    )
    add_settings(parser)
    parser.add_argument("--run-id", metavar="RUN", help="start from the settings of this run")
    parser.add_argument(
        "--resume", action="store_true", help="start from the settings of the newest run"
    )


def add_status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-id", metavar="RUN", help="its folder below runs/ (default: the newest)"
    )


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=path,
        metavar="DIR",
        help="folder with test.csv and the images; sample_submission.csv is optional",
    )
    parser.add_argument(
        "--run-id", metavar="RUN", help="the run with the adapters (default: the newest)"
    )
    add_output_options(parser.add_mutually_exclusive_group())


def add_blend_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders below runs/, at least two")
    parser.add_argument(
        "--run-id",
        metavar="NAME",
        help="the new folder below runs/ (default: the time and -blend)",
    )


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=path,
        metavar="FILE",
        help="YAML file (see vqa_utils/experiments/README.md); repeat the command to resume",
    )
    add_execution_options(parser)


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders below runs/ (default: all)")


def add_none(parser: argparse.ArgumentParser) -> None:
    """Leave a command without options."""


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options for settings of a run, places included."""
    settings = add_named_settings(parser)
    settings.add_argument(
        "--data",
        metavar="DIR",
        help="folder with train.csv, test.csv, sample_submission.csv and the images",
    )
    settings.add_argument("--model", help="a model on the hub, or a local folder")
    settings.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="keeps quantised weights between folds; '' keeps none",
    )
    settings.add_argument(
        "--extra-train",
        metavar="CSV",
        help="more rows to train on, never held out; columns as in train.csv",
    )
    settings.add_argument(
        "--drop",
        metavar="CSV",
        help="ids of train rows to leave out, such as an earlier run's report/suspect_labels.csv",
    )


def add_named_settings(parser: argparse.ArgumentParser) -> Group:
    """Add a preset and its changes; None keeps the value of the preset or the run."""
    settings = parser.add_argument_group("settings")
    settings.add_argument(
        "--preset", metavar="NAME", help=f"named settings (default: demo); see {PROGRAM} presets"
    )
    settings.add_argument(
        "--lang", choices=("en", "ko"), help="the language of the run's page and of a launcher"
    )
    settings.add_argument(
        "--report-to",
        type=names,
        metavar="tensorboard,...",
        help="tell trackers of the run: tensorboard, trackio, wandb, mlflow",
    )
    settings.add_argument(
        "--refit",
        action="store_true",
        default=None,  # not False, which would switch off the refit of a run to go on with
        help="train one more adapter on all rows, for the test set",
    )
    settings.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting, such as image_side=448; may be given several times",
    )
    settings.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="only the first N rows of train.csv and test.csv: a smoke run",
    )
    return settings


def add_execution_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to choose notebooks, and how they are executed."""
    execution = parser.add_argument_group("which notebooks, and how")
    execution.add_argument(
        "--folds",
        type=fold_numbers,
        default=[],
        metavar="0,2",
        help="only these folds; the number after the last is the refit's",
    )
    execution.add_argument(
        "--only", metavar="STAGE", help="only this notebook, such as 03_train_fold"
    )
    execution.add_argument(
        "--from", dest="start", metavar="STAGE", help="this notebook and later ones"
    )
    execution.add_argument(
        "--force", action="store_true", help="run everything again instead of reusing it"
    )
    execution.add_argument(
        "--strict",
        action="store_true",
        help="refuse to go on where code or libraries have changed since earlier notebooks",
    )
    execution.add_argument(
        "--no-ladder", action="store_true", help="stop at the first out-of-memory error"
    )
    execution.add_argument(
        "--cell-timeout",
        type=seconds,
        metavar="2h",
        help="end a run with a cell that takes longer (default: no limit)",
    )
    execution.add_argument(
        "--stall-timeout",
        type=seconds,
        default=STALL_SECONDS,
        metavar="20min",
        help="name a notebook that has made no progress for so long (default: 20min)",
    )
    output = execution.add_mutually_exclusive_group()
    output.add_argument(
        "--dry-run", action="store_true", help="show what would run or be reused; run nothing"
    )
    add_output_options(output)


def add_output_options(output: argparse._MutuallyExclusiveGroup) -> None:
    """Add the options for what a command prints."""
    output.add_argument(
        "--quiet", action="store_true", help="print the end, warnings and errors alone"
    )
    output.add_argument(
        "--json",
        action="store_true",
        help="print an event a line as JSON (see vqa_utils/running/README.md); warnings go to "
        "the standard error",
    )

"""Parse run_all.py's command line. Standard library only."""

import argparse
import sys

from vqa_utils.running._argument_export import add_kaggle_options
from vqa_utils.running._argument_types import STALL_SECONDS, fold_numbers, gpu_count, path, seconds
from vqa_utils.running.cluster.options import add_cluster_options

PROGRAM = "python run_all.py"
Commands = dict[str, argparse.ArgumentParser]
Group = argparse._ArgumentGroup  # as add_argument_group returns it


def parse_arguments(description: str = "") -> argparse.Namespace:
    """Read the command line; end the program with exit status 2 if it cannot be understood.

    Args:
        description: run_all.py's own, for its help.

    Returns:
        `command` and its options. Options of `run` missing in the command have their defaults.
    """
    words = sys.argv[1:]
    # `run` is the default, but a first word that is no option may be a misspelt command
    asks_for_help = words[:1] in (["-h"], ["--help"])
    if not words or (words[0].startswith("-") and not asks_for_help):
        words = ["run", *words]
    parser, commands = _parsers(description)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        commands[args.command].error(_describe_unknown(unknown, args.command, commands))
    return args


def changes_in(args: argparse.Namespace) -> list[str]:
    """Return the words of a command that change its preset."""
    words = [word for setting in args.set for word in ("--set", setting)]
    words += ["--limit", str(args.limit)] if args.limit is not None else []
    return [*words, "--refit"] if args.refit else words


def _describe_unknown(unknown: list[str], command: str, commands: Commands) -> str:
    """Explain words unknown to a command."""
    other = unknown[0].lstrip("-")
    if other in commands:
        return f"{unknown[0]}: `{other}` is a command and comes first: {PROGRAM} {other} --help"
    return (
        f"`{command}` does not take {' '.join(unknown)}; "
        f"{PROGRAM} {command} --help lists its options"
    )


def _parsers(description: str) -> tuple[argparse.ArgumentParser, Commands]:
    """Make the parser of the whole command line, and those of its commands by name."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [COMMAND] [options]",
        description=description,
        epilog=f"{PROGRAM} COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(
        title="commands (run, if none is given)", prog=PROGRAM, dest="command", metavar="COMMAND"
    )
    commands: Commands = {}

    def add(name: str, summary: str, usage: str) -> argparse.ArgumentParser:
        commands[name] = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            usage=f"{PROGRAM} {usage} [options]",
            allow_abbrev=False,  # a new option would make a short form ambiguous
        )
        return commands[name]

    _add_run_options(add("run", "run the notebook series, or go on with a run", "[run]"))
    _add_plan_options(
        add("check", "check rows, pictures, folds, model and memory; load nothing", "check")
    )
    _add_plan_options(
        add("plan", "show each GPU's memory and the expected minutes; load nothing", "plan")
    )
    _add_status_options(add("status", "show how far a run is, and what it does now", "status"))
    _add_predict_options(
        add("predict", "answer another test.csv with the adapters of a run", "predict DIR")
    )
    _add_blend_options(
        add("blend", "blend finished runs (other presets, seeds, models)", "blend RUN RUN ...")
    )
    _add_sweep_options(
        add("sweep", "make a run for each point of a grid of settings", "sweep FILE")
    )
    _add_compare_options(
        add("compare", "show the scores of finished runs side by side", "compare [RUN ...]")
    )
    on_kaggle = add(
        "export-kaggle", "write a dataset and a notebook for Kaggle", "export-kaggle DIR"
    )
    _add_named_settings(on_kaggle)
    add_kaggle_options(on_kaggle)
    alone = add(
        "export-notebook", "write one notebook with everything", "export-notebook FILE.ipynb"
    )
    alone.add_argument("file", type=path, metavar="FILE.ipynb", help="the notebook")
    _add_settings(alone)
    add("presets", "list the named settings", "presets")
    add("settings", "list all settings with their defaults and meanings", "settings")
    # resolve_run and run_steps serve several commands, and ask for any option of `run`
    # A command's own defaults win over these
    parser.set_defaults(**vars(commands["run"].parse_args([])))
    return parser, commands


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser)
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
    _add_execution_options(parser)


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--t4",
        type=gpu_count,
        default=0,
        metavar="N",
        help="plan for N T4 (default: the GPUs of this machine, or else two T4)",
    )
    _add_settings(parser)
    parser.add_argument("--run-id", metavar="RUN", help="start from the settings of this run")
    parser.add_argument(
        "--resume", action="store_true", help="start from the settings of the newest run"
    )


def _add_status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-id", metavar="RUN", help="its folder below runs/ (default: the newest)"
    )


def _add_predict_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=path,
        metavar="DIR",
        help="folder with test.csv and the images; sample_submission.csv is optional",
    )
    parser.add_argument(
        "--run-id", metavar="RUN", help="the run with the adapters (default: the newest)"
    )


def _add_blend_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders below runs/, at least two")
    parser.add_argument(
        "--run-id",
        metavar="NAME",
        help="the new folder below runs/ (default: the time and -blend)",
    )


def _add_sweep_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=path,
        metavar="FILE",
        help="YAML file (see vqa_utils/experiments/README.md); repeat the command to resume",
    )
    _add_execution_options(parser)


def _add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders below runs/ (default: all)")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options for settings of a run, places included."""
    settings = _add_named_settings(parser)
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


def _add_named_settings(parser: argparse.ArgumentParser) -> Group:
    """Add a preset and its changes; None keeps the value of the preset or the run."""
    settings = parser.add_argument_group("settings")
    settings.add_argument(
        "--preset", metavar="NAME", help=f"named settings (default: demo); see {PROGRAM} presets"
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


def _add_execution_options(parser: argparse.ArgumentParser) -> None:
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
    execution.add_argument(
        "--dry-run", action="store_true", help="show what would run or be reused; run nothing"
    )

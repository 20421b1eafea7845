"""Parse run_all.py's command line. Standard library only."""

import argparse
import sys

from vqa_utils.running.command_line import _exports as exports
from vqa_utils.running.command_line import _options as options

PROGRAM = options.PROGRAM
Commands = dict[str, argparse.ArgumentParser]
# Name, summary, usage, and what adds its options
COMMANDS = (
    ("run", "run the notebook series, or go on with a run", "[run]", options.add_run_options),
    (
        "check",
        "check rows, pictures, folds, model and memory; load nothing",
        "check",
        options.add_plan_options,
    ),
    (
        "plan",
        "show each GPU's memory and the expected minutes; load nothing",
        "plan",
        options.add_plan_options,
    ),
    (
        "status",
        "show how far a run is, and what it does now",
        "status",
        options.add_status_options,
    ),
    ("open", "show the page of a run in the browser", "open", options.add_status_options),
    (
        "predict",
        "answer another test.csv with the adapters of a run",
        "predict DIR",
        options.add_predict_options,
    ),
    (
        "blend",
        "blend finished runs (other presets, seeds, models)",
        "blend RUN RUN ...",
        options.add_blend_options,
    ),
    (
        "sweep",
        "make a run for each point of a grid of settings",
        "sweep FILE",
        options.add_sweep_options,
    ),
    (
        "compare",
        "show the scores of finished runs side by side",
        "compare [RUN ...]",
        options.add_compare_options,
    ),
    (
        "prepare",
        "pack a base without a GPU, for --model",
        "prepare DIR",
        exports.add_prepare_options,
    ),
    (
        "export-kaggle",
        "write a dataset and a notebook for Kaggle",
        "export-kaggle DIR",
        exports.add_kaggle_options,
    ),
    (
        "export-notebook",
        "write one notebook with everything",
        "export-notebook FILE.ipynb",
        exports.add_notebook_options,
    ),
    ("presets", "list the named settings", "presets", options.add_none),
    (
        "settings",
        "list all settings with their defaults and meanings",
        "settings",
        options.add_none,
    ),
)


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
    words += ["--report-to", ",".join(args.report_to)] if args.report_to else []
    words += ["--lang", args.lang] if args.lang else []
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
    for name, summary, usage, add_options in COMMANDS:
        commands[name] = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            usage=f"{PROGRAM} {usage} [options]",
            allow_abbrev=False,  # a new option would make a short form ambiguous
        )
        add_options(commands[name])
    # resolve_run and run_steps serve several commands, and ask for any option of `run`
    # A command's own defaults win over these
    parser.set_defaults(**vars(commands["run"].parse_args([])))
    return parser, commands

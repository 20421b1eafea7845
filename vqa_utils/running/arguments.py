"""The command line of run_all.py: what can be said, and which of it a command would not heed. Standard library only."""

import argparse

from vqa_utils.errors import RunError

# Commands that are not a run of the series: the arguments that each heeds beside its own, and why no others
HEEDED: dict[str, tuple[tuple[str, ...], str]] = {
    "list_presets": ((), "it shows the presets as they are"),
    "compare": ((), "it shows finished runs as they are"),
    "ensemble": (("run_id",), "it blends finished runs as they are"),
    "sweep": (
        ("folds", "only", "start", "resume", "force", "no_ladder", "dry_run"),
        "its file has each run's name and settings",
    ),
    "predict": (
        ("run_id", "resume"),
        "all adapters of the run answer as they were trained, scored and combined",
    ),
    "plan": (
        (
            "preset",
            "data",
            "model",
            "cache_dir",
            "extra_train",
            "refit",
            "set",
            "limit",
            "run_id",
            "resume",
        ),
        "it is about a whole run",
    ),
}


def parse_arguments(description: str = "") -> argparse.Namespace:
    """Read the command line."""
    return _parser(description).parse_args()


def check_heeded(args: argparse.Namespace) -> None:
    """Refuse arguments that the command would not heed: it would do something else than it is told.

    Raises:
        RunError: with all of them.
    """
    parser = _parser("")
    given = [name for name, value in vars(args).items() if value != parser.get_default(name)]
    command = next((name for name in HEEDED if name in given), None)
    if command is None:
        return
    heeded, reason = HEEDED[command]
    others = [_flag(name) for name in given if name not in (command, *heeded)]
    if others:
        beside = ", ".join(map(_flag, heeded)) or "no other argument"
        raise RunError(
            f"{_flag(command)}: expected {beside} beside it, as {reason}; found {', '.join(others)}"
        )


def _flag(name: str) -> str:
    return "--from" if name == "start" else f"--{name.replace('_', '-')}"


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--preset", help="named settings (default: demo); see --list-presets")
    what.add_argument(
        "--data", help="folder with train.csv, test.csv, sample_submission.csv and the images"
    )
    what.add_argument("--model", help="a model on the hub, or a local folder")
    what.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where quantised weights are kept between folds; '' for nowhere",
    )
    what.add_argument(
        "--extra-train",
        metavar="CSV",
        help="more rows to train on, never held out; columns as in train.csv",
    )
    what.add_argument(
        "--refit",
        action="store_true",
        default=None,
        help="train one more adapter on all rows, for the test set",
    )
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting, such as image_side=448",
    )
    what.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="the first N rows of train.csv and test.csv: a smoke run",
    )
    which = parser.add_argument_group("which run, which part of it")
    which.add_argument(
        "--run-id",
        help="the run's folder below runs/ (default: time and preset; with --resume the newest)",
    )
    which.add_argument(
        "--folds",
        default="",
        metavar="0,2",
        help="only these folds; the number after the last is the refit's",
    )
    which.add_argument(
        "--only", default="", metavar="STAGE", help="only this notebook, such as 03_train_fold"
    )
    which.add_argument(
        "--from", dest="start", default="", metavar="STAGE", help="this notebook and those after it"
    )
    which.add_argument(
        "--resume",
        action="store_true",
        help="go on with a run; what is whole and unchanged is reused",
    )
    which.add_argument("--force", action="store_true", help="run again what could be reused")
    which.add_argument(
        "--no-ladder", action="store_true", help="end the run at the first out-of-memory error"
    )
    which.add_argument(
        "--sweep", metavar="FILE", help="a run for each point of a grid of settings; again to go on"
    )
    which.add_argument(
        "--predict", metavar="DIR", help="answer another test.csv with the adapters of a run"
    )
    which.add_argument(
        "--ensemble",
        nargs="+",
        metavar="RUN",
        help="blend finished runs (other presets, seeds, models) into one",
    )
    look = parser.add_argument_group("look, run nothing")
    look.add_argument(
        "--dry-run",
        action="store_true",
        help="the notebooks that would run, and what would be reused",
    )
    look.add_argument(
        "--plan",
        nargs="?",
        type=int,
        const=0,
        metavar="N",
        help="each GPU's memory and the expected minutes, before anything is loaded; on N T4 (default: the GPUs here, or two T4)",
    )
    look.add_argument("--status", action="store_true", help="how far a run is")
    look.add_argument(
        "--compare",
        nargs="*",
        metavar="RUN",
        help="the scores of finished runs side by side (default: of all)",
    )
    look.add_argument("--list-presets", action="store_true")
    return parser

"""Resolve a command's run: folder, settings, data, origin."""

import argparse
import contextlib
import dataclasses
import re
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from vqa_utils.artifacts.files import TornFile, hashes, read_json, settings_to_json, write_json
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.artifacts.places import portable
from vqa_utils.artifacts.provenance import provenance
from vqa_utils.artifacts.run import LATEST, RUN_ID, link_latest, named_run, read_config
from vqa_utils.artifacts.taking_over import take_over_run
from vqa_utils.config import DEMO_MODEL_NAME, Config, parse_settings
from vqa_utils.data.challenge import Challenge, load_challenge
from vqa_utils.data.folds import check_leaks, read_folds
from vqa_utils.data.known.challenges import KNOWN_CHALLENGES, data_dir
from vqa_utils.errors import RunError
from vqa_utils.planning.source.identity import record_model, with_changes
from vqa_utils.presets import preset, preset_changes
from vqa_utils.setting_types import AUTO, ConfigError, is_path

# Kaggle mounts data sets below it, each in a folder of its own
KAGGLE_INPUT = Path("/kaggle/input")
RESERVED_IDS = (
    LATEST,
    "demo-data",
    "hard-data",
    "tensorboard",
    "trackio",
    "wandb",
)  # folders of runs/ that are no runs
# Options that are settings by the same name
OWN_ARGUMENTS = (
    *("data", "model", "limit", "cache_dir", "extra_train", "drop", "refit"),
    *("report_to", "lang"),
)


def resolve_run(args: argparse.Namespace, new_id: str) -> tuple[RunPaths, Config]:
    """Find the run of a command: its paths and its settings.

    Args:
        args: run_all.py's.
        new_id: names a new run, together with its preset.

    Raises:
        RunError: the run is there and neither --resume nor --force is given, or it is missing.
        ConfigError: unusable settings.
    """
    changes = _given_settings(args)
    if args.run_id is not None:
        checked_run_id(args.run_id)
    continues = args.resume or args.command in ("status", "open", "predict")
    if args.resume_from is not None:
        if args.dry_run:
            raise RunError(
                "--resume-from copies a run, and --dry-run writes nothing: leave out one"
            )
        args.run_id = take_over_run(Path(args.resume_from).expanduser(), args.run_id)
        continues = True
    name_of_preset = "demo" if args.preset is None else args.preset
    preset(name_of_preset)  # before it names a folder
    run_id = args.run_id or (LATEST if continues else f"{new_id}-{name_of_preset}")
    paths = named_run(run_id)
    if not paths.config.exists():
        if continues:
            raise RunError(
                f"{shown(paths.folder)}: expected a run, found none; python run_all.py starts one"
            )
        return paths, preset(name_of_preset, **changes)
    if not (continues or args.force or args.dry_run or args.command == "plan"):
        raise RunError(
            f"{shown(paths.folder)} is there already: --resume goes on with it, "
            "--force runs all of it again"
        )
    is_named = "model" in changes
    if args.preset is not None:
        changes = _changes_of_preset(args.preset) | changes  # the command line's own win
    return paths, with_changes(paths, read_config(paths), changes, is_named=is_named)


def tell_toy(args: argparse.Namespace, config: Config, console: Console) -> None:
    """Say that the demo's base answers one's own questions, if no preset was asked for."""
    is_own = config.model == DEMO_MODEL_NAME and config.data not in KNOWN_CHALLENGES
    if is_own and args.preset is None and not args.resume:
        console.print(
            "the demo's toy base answers these questions, which only shows that all works; "
            "--preset safe takes Qwen3-VL (python run_all.py presets lists more)",
            style="yellow",
        )


def _given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings on the command line, by name."""
    given = {name: getattr(args, name) for name in OWN_ARGUMENTS}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = parse_settings(args.set)
    if "preset" in settings:
        raise ConfigError(
            f"--set preset={settings['preset']}: expected --preset {settings['preset']}, which "
            "takes the settings of that name too"
        )
    return with_absolute_paths(changes | settings)


def _changes_of_preset(name: str) -> dict[str, Any]:
    """The settings of another preset for a run in progress.

    They include its batch: a run has a number for the preset's "auto", and an accumulation to it.
    """
    settings = preset(name)
    batch = {
        "folds_at_once": settings.folds_at_once,
        "cache_features": settings.cache_features,
        "micro_batch": settings.micro_batch,
        "accumulation": settings.accumulation,
    }
    return {"preset": name, **batch, **preset_changes(name)}


def checked_run_id(run_id: str) -> str:
    """Return the name of a run's folder as it is.

    Raises:
        RunError: it cannot be one.
    """
    if not re.fullmatch(RUN_ID, run_id) or run_id in RESERVED_IDS:
        raise RunError(
            "--run-id: expected up to 150 letters, digits, '.', '_', '=' or '-', not '.' first, "
            f"and not {' or '.join(RESERVED_IDS)}, found {run_id!r}"
        )
    return run_id


def with_absolute_paths(changes: dict[str, Any]) -> dict[str, Any]:
    """Resolve the folders and files among settings by name: the notebooks run elsewhere."""
    changes = dict(changes)
    for name in ("data", "extra_train", "drop", "model_dir", "cache_dir"):
        if changes.get(name) not in (None, "", AUTO, *KNOWN_CHALLENGES):
            changes[name] = _absolute(changes[name])
    if "model" in changes:
        changes["model"] = _model(changes["model"])
    return changes


def _absolute(path: str) -> str:
    if not is_path(path):
        return path  # `Config` refuses it
    folder = Path(path)
    with contextlib.suppress(RuntimeError):  # ~NAME of no user
        folder = folder.expanduser()
    return str(folder.resolve())


def _model(name: str) -> str:
    """A local folder from the repository or the home folder on; a name on the hub as it is."""
    folder = Path(name)
    if name.startswith("~/"):
        folder = folder.expanduser()
    is_folder = name and is_path(name) and folder.is_dir()
    return portable(str(folder.resolve())) if is_folder else name


def with_data(config: Config) -> Config:
    """Find the data if no folder is named, or the one named is not there, as where a run has moved.

    It is the one folder with a train.csv below Kaggle's input folder.

    Raises:
        RunError: there is none, or more than one.
    """
    if config.data in KNOWN_CHALLENGES or (config.data and data_dir(config.data).is_dir()):
        return config
    files = KAGGLE_INPUT.glob("**/train.csv")
    # An earlier output's runs have data of their own
    found = sorted(str(file.parent) for file in files if "runs" not in file.parts)
    if len(found) != 1 and config.data:
        return config  # it is not there: whoever reads it says so
    if len(found) != 1:
        seen = f"found {', '.join(found)}" if found else "found none to take instead"
        raise RunError(
            "--data: expected the folder with train.csv, test.csv, sample_submission.csv and the "
            f"images, {seen}"
        )
    return dataclasses.replace(config, data=found[0])


def start_run(paths: RunPaths, config: Config, *, check_folds: bool = False) -> None:
    """Check the data, write the run's settings and origin, and point `runs/latest` to it.

    Args:
        paths: the run.
        config: its settings.
        check_folds: check the run's folds too: no step makes them anew before they are used.

    Raises:
        DataError: the data have problems.
        FoldError: the folds are missing, are of other rows, or one picture stands in several.
    """
    if check_folds:  # before anything is written: a run that is refused leaves no folder
        read_folds(paths.folds, load_challenge(config).train)
    challenge = load_challenge(config, images=paths.images)
    if check_folds:
        _check_folds(paths, challenge)
    write_json(paths.config, settings_to_json(config))
    record_model(paths, config)
    _write_origin(paths, challenge)
    link_latest(paths)


def _check_folds(paths: RunPaths, challenge: Challenge) -> None:
    folds = read_folds(paths.folds, challenge.train)
    # One picture may have two paths: its contents decide
    by_contents = folds.assign(group=challenge.images_of(challenge.train)["hash"])
    check_leaks(by_contents, f"{paths.folds}, by the files' contents")


def _write_origin(paths: RunPaths, challenge: Challenge) -> None:
    """Write provenance.json; under `earlier`, the origins of earlier commands are kept."""
    origin = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        **provenance(),
        "inputs": hashes(challenge.files, challenge.folder),
        "earlier": [],
    }
    if paths.provenance.exists():
        try:
            before = read_json(paths.provenance)
        except TornFile as error:
            before = {"torn": str(error)}
        # Flat, the newest first: the origin before loses its own list
        origin["earlier"] = [before, *before.pop("earlier", [])]
    write_json(paths.provenance, origin)

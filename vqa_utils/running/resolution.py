"""A run's folder: which one a command means, its settings, its origin, and what its data is known by."""

import argparse
import csv
import dataclasses
import re
import time
from pathlib import Path
from typing import Any

from vqa_utils.artifacts.files import hashes, read_json, write_json
from vqa_utils.artifacts.paths import RunPaths, runs_dir, shown
from vqa_utils.artifacts.provenance import provenance
from vqa_utils.artifacts.run import read_config
from vqa_utils.config import Config, parse_settings, to_dict
from vqa_utils.data.challenge import KNOWN_CHALLENGES, data_dir, load_challenge
from vqa_utils.data.folds import check_leaks, read_folds
from vqa_utils.errors import RunError
from vqa_utils.forecasting.forecast import RowCounts
from vqa_utils.presets import preset, preset_changes

KAGGLE_INPUT = Path("/kaggle/input")


def resolve_run(args: argparse.Namespace, new_id: str) -> tuple[RunPaths, Config]:
    """Which run a command is about: its paths and its settings.

    Args:
        args: run_all.py's.
        new_id: names a new run, together with its preset.

    Raises:
        RunError: the run is there and nothing says to go on with it, or it is not there and should be.
        ConfigError: settings that cannot be used.
    """
    changes = {
        key: value
        for key in ("data", "model", "limit", "cache_dir", "extra_train", "refit")
        if (value := getattr(args, key)) is not None
    }
    changes = with_absolute_paths(changes | parse_settings(args.set))
    if args.run_id is not None:
        checked_run_id(args.run_id)
    continues = args.resume or args.status or args.predict
    run_id = args.run_id or ("latest" if continues else f"{new_id}-{args.preset or 'demo'}")
    paths = RunPaths(run_id)
    if paths.config.exists():
        if not (continues or args.force or args.dry_run or args.plan is not None):
            raise RunError(
                f"{shown(paths.folder)} is there already: --resume goes on with it, --force runs all of it again"
            )
        paths = RunPaths(paths.folder.resolve().name)  # what `latest` stands for
        if args.preset is not None:
            whole = preset(
                args.preset
            )  # the run has a number where the preset says "auto", and its accumulation to that
            batch = {"micro_batch": whole.micro_batch, "accumulation": whole.accumulation}
            changes = {"preset": args.preset, **batch, **preset_changes(args.preset), **changes}
        return paths, dataclasses.replace(read_config(paths), **changes)
    if continues:
        raise RunError(
            f"{shown(paths.folder)}: expected a run, found none; start one without --resume, --status or --predict"
        )
    return paths, preset(args.preset or "demo", **changes)


def checked_run_id(run_id: str) -> str:
    """The name of a run's folder, as it is.

    Raises:
        RunError: it cannot be one.
    """
    if not re.fullmatch(r"[\w.=-]+", run_id) or run_id in ("latest", "demo-data"):
        raise RunError(
            f"--run-id: expected letters, digits, '.', '_', '=' or '-', and not latest or demo-data, found {run_id!r}"
        )
    return run_id


def with_absolute_paths(changes: dict[str, Any]) -> dict[str, Any]:
    """Settings by name, their folders from the root on: the notebooks run elsewhere."""
    changes = dict(changes)
    if changes.get("data") is not None and changes["data"] not in KNOWN_CHALLENGES:
        changes["data"] = str(Path(changes["data"]).resolve())
    if changes.get("extra_train"):
        changes["extra_train"] = str(Path(changes["extra_train"]).expanduser().resolve())
    if changes.get("cache_dir") not in (None, "", "auto"):
        changes["cache_dir"] = str(Path(changes["cache_dir"]).expanduser().resolve())
    if "model" in changes:
        changes["model"] = _model(changes["model"])
    return changes


def with_data(config: Config) -> Config:
    """The settings with their data: where none is named, the one folder with a train.csv below Kaggle's input folder.

    Raises:
        RunError: there is none, or more than one.
    """
    if config.data:
        return config
    found = sorted(str(file.parent) for file in KAGGLE_INPUT.glob("**/train.csv"))
    if len(found) != 1:
        seen = f"found {', '.join(found)}" if found else "found none to take instead"
        raise RunError(
            f"--data: expected the folder with train.csv, test.csv, sample_submission.csv and the images, {seen}"
        )
    return dataclasses.replace(config, data=found[0])


def rows_here(config: Config) -> RowCounts | None:
    """How many rows a run would use, which are counted and not checked; None without the files."""
    try:
        data = with_data(config).data
    except RunError:
        return None
    folder = data_dir(data)
    files = [
        folder / "train.csv",
        folder / "test.csv",
        *([Path(config.extra_train)] if config.extra_train else []),
    ]
    if not all(file.is_file() for file in files):
        return None
    return RowCounts(*(min(rows, config.limit or rows) for rows in map(_count_rows, files)))


def _count_rows(file: Path) -> int:
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        return sum(map(bool, csv.reader(lines))) - 1  # without the head


def start_run(paths: RunPaths, config: Config, *, check_folds: bool = False) -> None:
    """Check the data, write the run's settings and provenance, and point `runs/latest` to it.

    Args:
        check_folds: check the run's folds too, as nothing makes them anew before they are used.

    Raises:
        DataError: the data have problems.
        FoldError: the folds are missing, are of other rows, or one picture stands in several.
    """
    challenge = load_challenge(config, images=paths.images)
    if check_folds:
        folds = read_folds(paths.folds, challenge.train)
        pictures = challenge.images_of(challenge.train)["hash"]
        check_leaks(folds.assign(group=pictures), f"{paths.folds}, by the files' contents")
    write_json(paths.config, to_dict(config))
    inputs = hashes(challenge.files, challenge.folder)
    before = read_json(paths.provenance) if paths.provenance.exists() else None
    earlier = (
        [before, *before.pop("earlier", [])] if before else []
    )  # a command that went on with the run erases no other's
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    write_json(
        paths.provenance, {"started": started, **provenance(), "inputs": inputs, "earlier": earlier}
    )
    latest = runs_dir() / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(paths.run_id, target_is_directory=True)


def _model(name: str) -> str:
    """A local folder as an absolute path, since the notebooks run elsewhere; a name on the hub as it is."""
    folder = Path(name).expanduser() if name.startswith("~/") else Path(name)
    return str(folder.resolve()) if folder.is_dir() else name

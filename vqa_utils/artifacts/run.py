"""Open a run: its paths and its settings; find the newest one."""

import contextlib
import re
from pathlib import Path

from vqa_utils.artifacts.files import TornFile, read_json, settings_of, settings_to_json, write_json
from vqa_utils.artifacts.fold_settings import fold_config
from vqa_utils.artifacts.paths import RunPaths, runs_dir
from vqa_utils.artifacts.places import located
from vqa_utils.config import PLACES, Config
from vqa_utils.errors import RunError
from vqa_utils.presets import preset
from vqa_utils.setting_types import ConfigError

INTERACTIVE = "interactive"  # the run of notebooks that are opened by hand
LATEST = "latest"  # names the newest run
# Of a run's name; not of `latest`, and of no hidden folder
RUN_ID = r"(?!latest$)(?!\.)[\w.=-]{1,150}"


def open_run(run_id: str, fold: int | None = None) -> tuple[RunPaths, Config]:
    """Open a run: its paths, and its settings or those of one of its folds.

    The run `interactive` is made with the preset demo if it is not there.

    Args:
        run_id: the run's folder below runs/.
        fold: the number of a fold, or of the refit, to ask for its settings.

    Raises:
        ConfigError: there is no such run.
    """
    paths = RunPaths(run_id)
    if not paths.config.exists():
        if run_id != INTERACTIVE:
            raise ConfigError(
                f"{paths.config}: expected a run's settings, found no file; "
                "start it with run_all.py"
            )
        write_json(paths.config, settings_to_json(preset("demo")))
    config = read_config(paths)
    if fold is None:
        return paths, config
    return paths, fold_config(paths.fold(fold), config)


def read_config(paths: RunPaths) -> Config:
    """Read the run's settings.

    Raises:
        ConfigError: they are of another version of the code.
        TornFile: the file is torn.
    """
    mend = (
        f"delete it and repeat the command that started the run, with --run-id {paths.run_id}: "
        "what is complete is reused"
    )
    return settings_of(read_json(paths.config, mend=mend), paths.config)


def outside_folders(paths: RunPaths) -> list[str]:
    """List the folders and files outside of a run that its settings name; none without settings."""
    if not paths.config.is_file():
        return []
    config = read_config(paths)
    folders = [located(getattr(config, name)) for name in PLACES]
    return [folder for folder in folders if Path(folder).is_absolute()]


def named_run(name: str) -> RunPaths:
    """Return a run by its name or its folder; `latest` is the one whose last command started last.

    The link of this name is for people: a copy makes a folder of it, and some drives have no links.

    Raises:
        RunError: it can be no run's.
    """
    folder = Path(name).absolute()
    name = name.rstrip("/")  # a shell has completed it
    if len(Path(name).parts) > 1 and folder.parent == runs_dir():
        name = folder.name  # such as runs/today
    if name != LATEST and not re.fullmatch(RUN_ID, name):
        raise RunError(f"expected the name of a folder below {runs_dir()}, found {name!r}")
    return RunPaths(name if name != LATEST else max(all_runs(), key=_started, default=LATEST))


def all_runs() -> list[str]:
    """Return the names of all runs, sorted."""
    folders = [file.parent for file in runs_dir().glob("*/config.json")]
    return sorted(folder.name for folder in folders if re.fullmatch(RUN_ID, folder.name))


def link_latest(paths: RunPaths) -> None:
    """Point the link `latest` to a run, where the drive has links and no copy stands there."""
    link = runs_dir() / LATEST
    if link.exists() and not link.is_symlink():
        return
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(paths.run_id, target_is_directory=True)


def _started(run_id: str) -> tuple[str, int]:
    """Return when the last command of a run started: as it says, and as its file does."""
    file = RunPaths(run_id).provenance
    try:
        return str(read_json(file).get("started", "")), file.stat().st_mtime_ns
    except (FileNotFoundError, TornFile):
        return "", 0

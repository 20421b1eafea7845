"""Open a run's folder in a notebook: its paths and its settings."""

from vqa_utils.artifacts.files import read_json, settings_of, write_json
from vqa_utils.artifacts.fold_settings import fold_config
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config, to_dict
from vqa_utils.presets import preset
from vqa_utils.setting_types import ConfigError

INTERACTIVE = "interactive"  # the run of notebooks that are opened by hand


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
        write_json(paths.config, to_dict(preset("demo")))
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

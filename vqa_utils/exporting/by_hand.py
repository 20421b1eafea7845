"""Start a run in a notebook."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqa_utils.artifacts.paths import RUNS_VARIABLE, RunPaths, shown
from vqa_utils.errors import RunError
from vqa_utils.planning.machine.check import check_run
from vqa_utils.planning.machine.gpus import describe_gpus, find_gpus
from vqa_utils.presets import preset
from vqa_utils.running.auto_settings import for_machine
from vqa_utils.running.resolution import start_run, with_absolute_paths, with_data
from vqa_utils.running.terminal.console import make_console

RUN_ID = "one-notebook"


def start_run_by_hand(
    preset_name: str, data: str, changes: dict[str, Any], folds: Sequence[int]
) -> str:
    """Check data, model and machine, and write the run's settings below the working folder.

    Args:
        preset_name: named settings.
        data: the challenge's folder; "" takes the preset's, or the one that is found.
        changes: of the preset.
        folds: the numbers of the adapters that the notebook has sections for.

    Returns:
        The run's name.

    Raises:
        VqaError: the data, the model, the machine or the settings have problems.
    """
    os.environ.setdefault(RUNS_VARIABLE, str(Path.cwd() / "runs"))
    given = changes | ({"data": data} if data else {})
    config = with_data(preset(preset_name, **with_absolute_paths(given)))
    if list(config.adapter_numbers) != list(folds):
        raise RunError(
            f"expected settings for the adapters {list(folds)}, which have their sections here, "
            f"found those of {list(config.adapter_numbers)}; export the notebook with them"
        )
    gpus = find_gpus()
    # One after the other, in this process
    config = for_machine(dataclasses.replace(config, folds_at_once=1), gpus, make_console())
    check_run(config, gpus)
    paths = RunPaths(RUN_ID)
    start_run(paths, config)
    print(f"{preset_name} on {describe_gpus(gpus)}: {shown(paths.folder)}")
    return RUN_ID

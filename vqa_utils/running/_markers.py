"""Record the state of steps: hashes of settings, data, inputs and outputs."""

import functools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_utils.artifacts.files import TornFile, hashes, read_json, write_atomically, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.config import Config
from vqa_utils.running.stages import Step

DONE = "done"  # the marker names these settings, data, inputs and outputs
CHANGED = "changed"  # it names others
MISSING = "missing"


@dataclass(frozen=True)
class Markers:
    """The markers of steps under given settings, `stages/<step>.json`.

    A marker is written last, so a step with one is complete.
    """

    paths: RunPaths
    """the run, whose files the steps read"""
    out: RunPaths
    """where the steps write, their markers too; apart from the run for a prediction"""
    config: Config
    hash_data: Callable[[Config], str]
    """names the data that the steps read"""

    def state(self, step: Step) -> str:
        """`DONE`, `CHANGED` or `MISSING`."""
        marker = self._marker(step)
        if not marker.exists():
            return MISSING
        try:
            written = read_json(marker)
        except TornFile:
            return CHANGED
        return DONE if written == self._record(step) else CHANGED

    def changes(self, step: Step) -> list[str]:
        """Name what is not as a step's marker has it: the settings, the data, or files."""
        try:
            written = read_json(self._marker(step))
        except TornFile:
            return ["its marker is torn"]
        now = self._record(step)
        if not isinstance(written, dict) or written.keys() != now.keys():
            return ["its marker is of another version"]
        changed = []
        if written["config"] != now["config"]:
            changed.append("other settings")
        if written["data"] != now["data"]:
            changed.append("other data")
        for part in ("inputs", "outputs"):
            names = written[part] | now[part]
            changed += [name for name in names if written[part].get(name) != now[part].get(name)]
        return changed

    def write(self, step: Step) -> None:
        """Mark a step as complete."""
        write_json(self._marker(step), self._record(step))

    def archived(self, step: Step) -> Path:
        """The step's executed notebook."""
        return self.out.notebooks / f"{step.name}.ipynb"

    def set_aside(self, step: Step) -> None:
        """Move the files of a step to `replaced/`: not taken for new ones, and not lost."""
        there = [path for path in self._files(step) if path.exists()]
        files = [path.relative_to(self.out.folder) for path in dict.fromkeys(there)]
        folder = _free_folder(self.out.folder / "replaced", files)
        for file in files:  # the marker last: until then the step is to be set aside
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (self.out.folder / file).rename(folder / file)

    def take_over(self, step: Step, source: "Markers") -> None:
        """Copy the files of a step from another run, its marker last.

        The archived notebook goes on to name the run of its execution.
        """
        if self.state(step) == CHANGED:
            self.set_aside(step)
        for path in [source.archived(step), *source._files(step)]:
            target = self.out.folder / path.relative_to(source.out.folder)
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
            elif path.exists():
                write_atomically(target, functools.partial(shutil.copyfile, path))

    def _record(self, step: Step) -> dict[str, Any]:
        """Collect what has to be equal for a step to be reused.

        Settings, data, inputs and outputs, each by hash.
        """
        if step.stage.trains:
            settings = self.config.training_hash
        else:
            settings = self.config.hash_for(step.stage.name)
        inputs = step.inputs(self.paths.folder)
        outputs = step.outputs(self.out.folder)
        return {
            "config": settings,
            "data": self.hash_data(self.config),
            "inputs": hashes(inputs, self.paths.folder),
            "outputs": hashes(outputs, self.out.folder),
        }

    def _files(self, step: Step) -> list[Path]:
        """The files of a step but for its notebook, the marker last; some twice."""
        files = step.outputs(self.out.folder)
        if step.stage.trains and step.fold is not None:
            fold = self.paths.fold(step.fold)
            files += [fold.config, fold.rungs]
        return [*files, self._marker(step)]

    def _marker(self, step: Step) -> Path:
        return self.out.stages / f"{step.name}.json"


def _free_folder(parent: Path, files: Sequence[Path]) -> Path:
    """A new folder, named after the time; two commands may meet within a second."""
    now = time.strftime("%Y%m%d-%H%M%S")
    folder = parent / now
    number = 1
    while any((folder / file).exists() for file in files):
        number += 1
        folder = parent / f"{now}-{number}"
    return folder

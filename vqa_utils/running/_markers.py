"""Record the state of steps: hashes of settings, data, inputs and outputs, and their origin."""

import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_utils.artifacts.files import TornFile, hashes, read_json, write_atomically, write_json
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.config import Config
from vqa_utils.errors import RunError
from vqa_utils.planning.source.identity import record_model
from vqa_utils.running.archive.origin import Origin, hash_of_cells, origin_of
from vqa_utils.running.notebooks import execution
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
        if not self._marker(step).exists():
            return MISSING
        return CHANGED if self.changes(step) else DONE

    def changes(self, step: Step) -> list[str]:
        """Name what is not as a step's marker has it: settings, data, cells, or files."""
        try:
            written = read_json(self._marker(step))
        except TornFile:
            return ["its marker is torn"]
        now = self._record(step)
        if not isinstance(written, dict) or not written.keys() >= now.keys():
            return ["its marker is of another version"]
        changed = []
        if written["config"] != now["config"]:
            changed.append("other settings")
        if written["data"] != now["data"]:
            changed.append("other data")
        if self._has_other_cells(step, written):
            changed.append(f"other cells in {notebook_of(step).name}")
        for part in ("inputs", "outputs"):
            names = written[part] | now[part]
            changed += [name for name in names if written[part].get(name) != now[part].get(name)]
        return changed

    def begin(self, step: Step) -> Origin:
        """Describe what a step runs with, before it does.

        A training that goes on from a checkpoint has the origin of its beginning; where the cells
        have changed since, it begins anew.
        """
        now = origin_of(notebook_of(step))
        if not step.stage.trains:
            return now
        begun = self.begun(step)
        if begun is not None and self._has_other_cells(step, begun):
            self.set_checkpoints_aside([step])
            begun = None
        if begun is None:
            write_json(self._begun_file(step), dict(now))
        return begun or now

    def begun(self, step: Step) -> Origin | None:
        """Return the origin of a training that goes on from a checkpoint; None of another step."""
        if not step.stage.trains or not any(self._checkpoints(step).glob("*/checkpoint-*")):
            return None
        return _read_origin(self._begun_file(step))

    def _begun_file(self, step: Step) -> Path:
        """The origin of a training under these settings, beside its checkpoints.

        Under other settings, it begins anew beside them.
        """
        return self._checkpoints(step) / f"origin-{self.config.training_hash}.json"

    def origin(self, step: Step) -> Origin | None:
        """Return what a complete step has run with; None of one of an earlier version."""
        return _read_origin(self._marker(step))

    def write(self, step: Step, origin: Origin) -> None:
        """Mark a step as complete.

        Raises:
            RunError: it has not written its files.
        """
        absent = [path for path in step.outputs(self.out.folder) if not path.exists()]
        if absent:
            raise RunError(
                f"{shown(self.archived(step))}: expected it to write "
                f"{', '.join(map(shown, absent))}, found nothing there"
            )
        write_json(self._marker(step), self._record(step) | dict(origin))
        record_model(self.paths, self.config)  # its files may not have been here before

    def archived(self, step: Step) -> Path:
        """The step's executed notebook."""
        return self.out.notebooks / f"{step.name}.ipynb"

    def set_aside(self, step: Step) -> None:
        """Move the files of a step to `replaced/`: not taken for new ones, and not lost."""
        self._move_aside(self._files(step))

    def set_checkpoints_aside(self, steps: Sequence[Step]) -> None:
        """Move the checkpoints of trainings to `replaced/`, so that they begin anew."""
        self._move_aside([self._checkpoints(step) for step in steps if step.stage.trains])

    def _move_aside(self, paths: Sequence[Path]) -> None:
        there = [path for path in paths if path.exists()]
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

    def _has_other_cells(self, step: Step, written: Mapping[str, Any]) -> bool:
        """Compare a notebook's cells with those of then; an earlier version has not kept them."""
        cells = hash_of_cells(notebook_of(step))
        return written.get("notebook", cells) != cells

    def _files(self, step: Step) -> list[Path]:
        """The files of a step but for its notebook, the marker last; some twice."""
        files = step.outputs(self.out.folder)
        if step.stage.trains and step.fold is not None:
            fold = self.paths.fold(step.fold)
            files += [fold.config, fold.rungs]
        return [*files, self._marker(step)]

    def _marker(self, step: Step) -> Path:
        return self.out.stages / f"{step.name}.json"

    def _checkpoints(self, step: Step) -> Path:
        assert step.fold is not None  # each training is of a fold
        return self.paths.fold(step.fold).checkpoints


def notebook_of(step: Step) -> Path:
    """Return the notebook that a step executes."""
    return execution.NOTEBOOKS / f"{step.stage.name}.ipynb"


def _read_origin(file: Path) -> Origin | None:
    try:
        written = read_json(file)
        return Origin(
            notebook=written["notebook"], code=written["code"], libraries=written["libraries"]
        )
    except (FileNotFoundError, TornFile, KeyError, TypeError):
        return None


def _free_folder(parent: Path, files: Sequence[Path]) -> Path:
    """A new folder, named after the time; two commands may meet within a second."""
    now = time.strftime("%Y%m%d-%H%M%S")
    folder = parent / now
    number = 1
    while any((folder / file).exists() for file in files):
        number += 1
        folder = parent / f"{now}-{number}"
    return folder

"""Runs the steps of a run: what is whole is reused, folds go side by side, and an out-of-memory error takes a rung."""

import contextlib
import copy
import functools
import itertools
import queue
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import Progress

from vqa_utils.artifacts.files import hashes, read_json, write_atomically, write_json
from vqa_utils.artifacts.fold_settings import Rung, climbed, read_rungs, write_rungs
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.config import Config
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.errors import RunError
from vqa_utils.planning.gpus import T4, find_gpus, gpu_limits
from vqa_utils.planning.ladder import next_rung
from vqa_utils.planning.plan import make_plan
from vqa_utils.planning.shapes import shape_of
from vqa_utils.running.execution import (
    Environment,
    NotebookError,
    OutOfMemory,
    execute,
    fold_environments,
    process_with,
)
from vqa_utils.running.stages import Step
from vqa_utils.running.terminal import follow, progress_lines


class Runner:
    """Executes the steps of one run."""

    def __init__(
        self, paths: RunPaths, config: Config, console: Console, *, reuse: bool, ladder: bool = True
    ):
        """With `reuse`, a step whose marker names these settings, inputs and outputs is not run again.

        With `ladder`, an out-of-memory error in a fold's notebook does not end the run.
        """
        self.paths, self.config, self.console, self.reuse, self.ladder = (
            paths,
            config,
            console,
            reuse,
            ladder,
        )
        self._data_hash = ""

    def state(self, step: Step) -> str:
        """`done` (its marker names these settings, inputs and outputs), `changed`, or `missing`."""
        marker = self._marker(step)
        if not marker.exists():
            return "missing"
        return "done" if read_json(marker) == self._record(step) else "changed"

    def table(self, steps: list[Step]) -> pd.DataFrame:
        """A line a step: `notebook`, `parameters`, `state`, and what `a run would` do."""
        words = {
            "done": "reuse" if self.reuse else "run again",
            "changed": "run again",
            "missing": "run",
        }
        rows = [(step.name, step.parameters(self.paths.run_id), self.state(step)) for step in steps]
        return pd.DataFrame(
            [
                (name, " ".join(f"{k}={v}" for k, v in given.items()), state, words[state])
                for name, given, state in rows
            ],
            columns=["notebook", "parameters", "state", "a run would"],
        )

    def check_whole(self, steps: Sequence[Step]) -> None:
        """Check that no step has written for other settings or inputs what later ones would take for this run's.

        Raises:
            RunError: which did.
        """
        if stale := [step.name for step in steps if self.state(step) == "changed"]:
            raise RunError(
                f"expected what earlier notebooks wrote to be of these settings and inputs, found others at {', '.join(stale)}; "
                "without --from, --only and --folds they run again"
            )

    def looking_at(self, paths: RunPaths) -> "Runner":
        """The same settings and data, with another run's folder: `done` is what this run need not make itself."""
        other = copy.copy(self)
        other.paths = paths
        return other

    def take_over(self, step: Step, source: "Runner") -> None:
        """Copy what another run has of a step, its marker last. The archived notebook goes on to name the run that executed it."""
        if self.state(step) == "changed":
            self._set_aside(step)
        for path in [source._archived(step), *source._files(step)]:
            target = self.paths.folder / path.relative_to(source.paths.folder)
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
            elif path.exists():
                write_atomically(target, functools.partial(shutil.copyfile, path))

    def run(self, steps: Sequence[Step]) -> None:
        """Execute the notebooks into the run's archive in their order, and write each one's marker.

        Folds that need no more than a GPU each, or that have no GPU and several cores, run side by side; all of them end before
        an error of one does.

        Raises:
            RunError: a notebook failed, or did not write what it should; its archived copy is named.
            LadderError: a GPU's memory ran out, and no change of the settings is left to try.
        """
        if steps:
            self._record(
                steps[0]
            )  # hashes the data once, before there are threads and lines: that has a bar of its own
        for _, group in itertools.groupby(
            steps, key=lambda step: step.stage.per_fold or step.stage.name
        ):
            together = list(group)
            environments = fold_environments(self.config, len({step.fold for step in together}))
            with progress_lines(self.console) as progress:
                if len(environments) > 1:
                    self._run_side_by_side(together, environments, progress)
                else:
                    for step in together:
                        self._run(step, progress)

    def _run_side_by_side(
        self, steps: Sequence[Step], environments: Sequence[Environment], progress: Progress
    ) -> None:
        """Each step goes to the next free process; a fold's later notebook waits for its earlier one alone."""
        free: queue.Queue[Executor] = queue.Queue()

        def run_when_free(step: Step, earlier: Future | None) -> None:
            if earlier is not None:
                earlier.result()  # it has a thread already, as steps start in their order
            process = free.get()
            try:
                self._run(step, progress, process)
            finally:
                free.put(process)

        latest: dict[int | None, Future] = {}
        running = []
        with (
            contextlib.ExitStack() as processes,
            ThreadPoolExecutor(max_workers=len(environments)) as threads,
        ):
            for environment in environments:
                free.put(processes.enter_context(process_with(environment)))
            for step in steps:
                latest[step.fold] = threads.submit(run_when_free, step, latest.get(step.fold))
                running.append(latest[step.fold])
        for finished in running:
            finished.result()

    def _run(self, step: Step, progress: Progress, process: Executor | None = None) -> None:
        state = self.state(step)
        if state == "done" and self.reuse:
            self.console.print(f"  {step.name:<22} reused")
            return
        if state != "missing":
            self._set_aside(step)
        archived = self._archived(step)
        train_log = self.paths.fold(step.fold).train_log if step.fold is not None else None
        if step.stage.trains:
            self._start_where_others_are(step)
        for attempt in itertools.count(1):
            try:
                with follow(progress, self.console, step.name, train_log):
                    execute(step.stage.name, archived, step.parameters(self.paths.run_id), process)
                break
            except NotebookError as error:
                planned = self.ladder and self.config.device_map == "plan"
                if error.out_of_memory is None or step.fold is None or not planned:
                    raise
                archived.rename(archived.with_stem(f"{step.name}-out-of-memory{attempt}"))
                rung = self._climb(step, error.out_of_memory)
                self.console.print(
                    f"  {step.name:<22} out of memory; {rung}", style="yellow", markup=False
                )
        absent = [path for path in step.outputs(self.paths.folder) if not path.exists()]
        if absent:
            raise RunError(
                f"{shown(archived)}: expected it to write {', '.join(map(shown, absent))}, found nothing there"
            )
        write_json(self._marker(step), self._record(step))

    def _climb(self, step: Step, ran_out: OutOfMemory) -> Rung:
        """Note the next rung for the step's fold; the notebook reads it in its next, fresh kernel."""
        file = self.paths.fold(step.fold).rungs
        rungs, shape = read_rungs(file, self.config), shape_of(self.config)

        def peak(config: Config) -> int:
            machine = find_gpus() or [T4] * max(1, len(config.max_memory))
            gpus = make_plan(config, shape, gpu_limits(config, machine)).gpus
            return gpus[min(ran_out.gpu, len(gpus) - 1)].peaks.get(ran_out.phase, 0)

        now = climbed(self.config, rungs)
        rung = next_rung(
            now,
            ran_out.gpu,
            ran_out.phase,
            peak,
            trains=step.stage.trains,
            experts=shape.experts > 0,
        )
        write_rungs(file, self.config, [*rungs, rung])
        return rung

    def _start_where_others_are(self, step: Step) -> None:
        """A fold starts with the rungs that another of the run needed: it would only meet the same errors."""
        file = self.paths.fold(step.fold).rungs
        taken = [
            read_rungs(self.paths.fold(k).rungs, self.config) for k in self.config.adapter_numbers
        ]
        most = max(taken, key=len)
        if most and not read_rungs(file, self.config):
            write_rungs(file, self.config, most)

    def _set_aside(self, step: Step) -> None:
        """Move what a step wrote for other settings or inputs to `replaced/`: not taken for new, and not lost."""
        there = dict.fromkeys(
            path for path in self._files(step) if path.exists()
        )  # once each, as patterns overlap; marker last
        files = [path.relative_to(self.paths.folder) for path in there]
        now = self.paths.folder / "replaced" / time.strftime("%Y%m%d-%H%M%S")
        folders = itertools.chain(
            [now], (now.with_name(f"{now.name}-{number}") for number in itertools.count(2))
        )
        aside = next(
            folder for folder in folders if not any((folder / file).exists() for file in files)
        )
        for file in files:
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            (self.paths.folder / file).rename(aside / file)

    def _record(self, step: Step) -> dict[str, Any]:
        if not self._data_hash:
            self._data_hash = data_hash(self.config, self.paths.images)
        run = self.paths.folder
        files = {"inputs": hashes(step.inputs(run), run), "outputs": hashes(step.outputs(run), run)}
        settings = (
            self.config.training_hash
            if step.stage.trains
            else self.config.hash_for(step.stage.name)
        )
        return {"config": settings, "data": self._data_hash, **files}

    def _files(self, step: Step) -> list[Path]:
        """What a step leaves but for its notebook, the marker last."""
        rungs = [self.paths.fold(step.fold).rungs] if step.stage.trains else []
        return [*step.outputs(self.paths.folder), *rungs, self._marker(step)]

    def _archived(self, step: Step) -> Path:
        return self.paths.notebooks / f"{step.name}.ipynb"

    def _marker(self, step: Step) -> Path:
        return self.paths.stages / f"{step.name}.json"

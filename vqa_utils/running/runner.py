"""Run steps: reuse complete ones, folds side by side, smaller settings after out-of-memory."""

import copy
import functools
import time
from collections.abc import Callable, Sequence

import pandas as pd
from rich.console import Console
from rich.progress import Progress

from vqa_utils.artifacts.fold_settings import Rung, fold_config, prepare_fold, take_rung
from vqa_utils.artifacts.paths import FoldPaths, RunPaths, shown
from vqa_utils.artifacts.stop import end_if_asked, stoppable
from vqa_utils.artifacts.timings import time_table
from vqa_utils.config import Config
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.ensembling.members import scored_adapters
from vqa_utils.errors import RunError
from vqa_utils.planning.ladder import next_rung
from vqa_utils.planning.machine.gpus import find_gpus, gpu_limits
from vqa_utils.planning.plan import assumed_gpus, make_plan
from vqa_utils.planning.shapes import shape_of
from vqa_utils.running._markers import CHANGED, DONE, MISSING, Markers
from vqa_utils.running.archive.changes import tell_changes
from vqa_utils.running.archive.notebooks import keep_attempt
from vqa_utils.running.execution import (
    KernelDied,
    NotebookError,
    NotebookProcess,
    OutOfMemory,
    execute,
    fold_environments,
)
from vqa_utils.running.kernels import clean_environment
from vqa_utils.running.resolution import start_run, with_data
from vqa_utils.running.side_by_side import SideBySide
from vqa_utils.running.stages import (
    ANALYSIS,
    ENSEMBLE,
    Step,
    built_on,
    grouped,
    takes_folds_as_they_are,
)
from vqa_utils.running.terminal import follow, print_table, progress_lines
from vqa_utils.sharing.lender import Lender
from vqa_utils.sharing.seats import CrowdedOutOfMemory
from vqa_utils.sharing.shared_base import (
    ALONE,
    Sharing,
    early_lender,
    is_placed_alike,
    shared_base,
)


class Runner:
    """Executes the steps of one run.

    Attributes:
        paths: the run.
        out: the folder of new files; the run's own but for a prediction.
        config: the run's settings.
        console: the terminal.
        reuse: do not run a step again if its marker names these settings, inputs and outputs.
        ladder: after an out-of-memory error of a fold, try again with a rung.
    """

    def __init__(
        self,
        paths: RunPaths,
        config: Config,
        console: Console,
        *,
        reuse: bool,
        ladder: bool = True,
    ):
        self.paths = self.out = paths
        self.config = config
        self.console = console
        self.reuse = reuse
        self.ladder = ladder
        # Only pictures that have changed are read
        self._hash_data = functools.cache(functools.partial(data_hash, images=paths.images))

    @property
    def _markers(self) -> Markers:
        # made each time: `config` gets its data late, see `execute_steps`
        return Markers(self.paths, self.out, self.config, self._hash_data)

    def state(self, step: Step) -> str:
        """`done` (its marker names these settings, inputs and outputs), `changed`, or `missing`."""
        return self._markers.state(step)

    def is_done(self, step: Step) -> bool:
        """True if a step is complete, from these settings, data and inputs."""
        return self.state(step) == DONE

    def is_reused(self, step: Step) -> bool:
        """True if a step is complete, and is not to run again."""
        return self.reuse and self.is_done(step)

    def table(self, steps: Sequence[Step]) -> pd.DataFrame:
        """One line per step: `notebook`, `parameters`, `state`, `a run would` (its action)."""
        would = {
            DONE: "reuse" if self.reuse else "run again",
            CHANGED: "run again",
            MISSING: "run",
        }
        lines = []
        for step in steps:
            state = self.state(step)
            given = step.parameters(self.paths.run_id)
            parameters = " ".join(f"{name}={value}" for name, value in given.items())
            lines.append((step.name, parameters, state, would[state]))
        return pd.DataFrame(lines, columns=["notebook", "parameters", "state", "a run would"])

    def check_whole(self, steps: Sequence[Step]) -> None:
        """Check steps for files of other settings or inputs: later steps would not see it.

        Raises:
            RunError: with their names.
        """
        stale = [step.name for step in steps if self.state(step) == CHANGED]
        if stale:
            raise RunError(
                "expected what earlier notebooks wrote to be of these settings, inputs and cells, "
                f"found others at {', '.join(stale)}; "
                "without --from, --only and --folds they run again"
            )

    def tell_changes(
        self, steps: Sequence[Step], earlier: Sequence[Step] | None = None, *, strict: bool = False
    ) -> None:
        """Say what code and libraries have changed since steps that do not run again."""
        chosen = steps if self.reuse else ()
        if earlier is None:
            earlier = built_on(steps, scored_adapters(self.paths, self.config))
        tell_changes(self._markers, chosen, earlier, self.console, strict=strict)

    def looking_at(self, paths: RunPaths) -> "Runner":
        """Look at another run's folder with these settings and data."""
        other = copy.copy(self)
        other.paths = other.out = paths
        return other

    def writing_to(self, out: RunPaths, hash_data: Callable[[Config], str]) -> "Runner":
        """Use this run's adapters on other data: steps write below `out`, their markers too.

        Args:
            out: the folder of the answers.
            hash_data: names the contents of the other data.
        """
        other = copy.copy(self)
        other.out = out
        other._hash_data = functools.cache(hash_data)
        return other

    def take_over(self, step: Step, source: "Runner") -> None:
        """Copy the files of a step from another run, its marker last."""
        self._markers.take_over(step, source._markers)

    def run(self, steps: Sequence[Step]) -> None:
        """Execute the notebooks into the archive in their order, and write each one's marker.

        Folds go side by side if each needs one GPU at most, if they share a base, or on cores
        without any GPU. All of them end before an error of one is raised.

        Raises:
            RunError: a notebook failed, or did not write its files; its archived copy is named.
            LadderError: a GPU's memory ran out, and no change of the settings is left to try.
        """
        clean_environment()
        if not self.reuse:
            self._markers.set_checkpoints_aside(steps)
        if steps:
            self._hash_data(self.config)  # now: its progress bar and the notebooks' lines would mix
        with (
            stoppable(self.paths),
            early_lender(self.paths, self.config, self._due_folds(steps)) as lender,
        ):
            for together in grouped(steps):
                if together[0].stage.per_fold:
                    self._run_folds(together, lender)
                    continue
                with progress_lines(self.console) as progress:
                    for step in together:
                        self._run(step, progress)

    def _due_folds(self, steps: Sequence[Step]) -> list[Config]:
        """Return the settings of each fold with steps to execute, as far as is known by now."""
        due = [step for step in steps if not self.is_reused(step)]
        numbers = dict.fromkeys(step.fold for step in due if step.fold is not None)
        return [fold_config(self.paths.fold(number), self.config) for number in numbers]

    def _run_folds(self, steps: Sequence[Step], lender: Lender | None) -> None:
        """Run steps of folds, side by side where that is possible."""
        folds = self._due_folds(steps)
        with shared_base(self.paths, self.config, folds, self.console, lender) as sharing:
            environments = sharing.environments or fold_environments(self.config, len(folds))
            with progress_lines(self.console) as progress:
                if environments:

                    def run_in(step: Step, process: NotebookProcess) -> None:
                        self._run(step, progress, process, sharing)

                    together = SideBySide(steps, sharing, run_in, self.is_reused, self.console)
                    together.run(environments)
                else:
                    for step in steps:
                        self._run(step, progress)

    def _run(
        self,
        step: Step,
        progress: Progress,
        process: NotebookProcess | None = None,
        sharing: Sharing = ALONE,
    ) -> None:
        """Reuse or execute one step.

        Raises:
            Stopped: the run was asked to stop.
        """
        end_if_asked()
        markers = self._markers
        state = markers.state(step)
        if state == DONE and self.reuse:
            self.console.print(f"  {step.name:<22} reused")
            return
        if state == CHANGED and self.reuse:
            changes = ", ".join(markers.changes(step))
            self.console.print(f"  {step.name:<22} runs again: {changes}", markup=False)
        if state != MISSING:
            markers.set_aside(step)
        origin = markers.begin(step)
        try:
            self._execute(step, progress, process, sharing)
        except RunError:
            end_if_asked()  # it has ended early, or a signal to all processes has ended its kernel
            raise
        absent = [path for path in step.outputs(self.out.folder) if not path.exists()]
        if absent:
            raise RunError(
                f"{shown(markers.archived(step))}: expected it to write "
                f"{', '.join(map(shown, absent))}, found nothing there"
            )
        markers.write(step, origin)

    def _execute(
        self, step: Step, progress: Progress, process: NotebookProcess | None, sharing: Sharing
    ) -> None:
        """Execute a notebook; again after an out-of-memory error of a fold, or once if it died.

        Each time it has a fresh kernel, and a training goes on from its last checkpoint.

        Raises:
            KernelDied: twice.
            CrowdedOutOfMemory: there are other folds on the GPUs, now one less at a time.
        """
        archived = self._markers.archived(step)
        parameters = step.parameters(self.paths.run_id)
        fold = train_log = None
        if step.fold is not None:
            fold = self.paths.fold(step.fold)
            train_log = fold.train_log
            self._prepare(step)
        has_died = False
        while True:
            try:
                with follow(progress, self.console, step.name, train_log):
                    execute(step.stage.name, archived, parameters, process)
                return
            except KernelDied as error:
                end_if_asked()  # a signal to all of the run's processes may have ended it
                if has_died:
                    raise
                has_died = True
                keep_attempt(archived, "died")
                how = str(error).splitlines()[0].removeprefix(f"{step.name}: ")
                self.console.print(
                    f"  {step.name:<22} {how}; it is tried once more", style="yellow", markup=False
                )
            except NotebookError as error:
                planned = self.config.device_map == "plan"  # else no plan says what a rung saves
                if fold is None or error.out_of_memory is None or not (self.ladder and planned):
                    raise
                keep_attempt(archived, "out-of-memory")
                self._take_less(step, fold, error.out_of_memory, sharing)

    def _take_less(
        self, step: Step, fold: FoldPaths, ran_out: OutOfMemory, sharing: Sharing
    ) -> None:
        """Let a fold that ran out of memory take less of it in its next kernel.

        Raises:
            CrowdedOutOfMemory: there are other folds on the GPUs, now one less at a time.
        """
        if sharing.seats.shrink(step.name):
            raise CrowdedOutOfMemory(
                f"{step.name:<22} out of memory; from here on one fold less at a time"
            )
        rung = self._climb(fold, ran_out, trains=step.stage.trains)
        gpus = find_gpus()
        if gpus and not is_placed_alike(fold_config(fold, self.config), self.config, gpus):
            sharing.withdraw()
        self.console.print(f"  {step.name:<22} out of memory; {rung}", style="yellow", markup=False)

    def _prepare(self, step: Step) -> None:
        """Write the settings of a step's fold, with the rungs of other folds if it trains."""
        if step.fold is not None:
            others = self._folds() if step.stage.trains else []
            prepare_fold(self.paths.fold(step.fold), self.config, others)

    def _climb(self, fold: FoldPaths, ran_out: OutOfMemory, *, trains: bool) -> Rung:
        """Take the next rung in a fold's settings, for its next kernel."""
        shape = shape_of(self.config)
        # Without a GPU, the plan is for T4, as when the batches were resolved
        machine = find_gpus() or assumed_gpus(self.config)

        def peak(config: Config) -> int:
            gpus = make_plan(config, shape, gpu_limits(config, machine)).gpus
            # CUDA may count GPUs that the plan leaves out
            return gpus[min(ran_out.gpu, len(gpus) - 1)].peaks.get(ran_out.phase, 0)

        rung = next_rung(
            fold_config(fold, self.config),
            ran_out.gpu,
            ran_out.phase,
            peak,
            trains=trains,
            experts=shape.experts > 0,
        )
        take_rung(fold, self.config, rung)
        return rung

    def _folds(self) -> list[FoldPaths]:
        return [self.paths.fold(number) for number in self.config.adapter_numbers]


def execute_steps(runner: Runner, steps: Sequence[Step], *, strict: bool = False) -> None:
    """Check earlier steps, write the run's settings, execute its steps, and print the results.

    Raises:
        VqaError: the data, earlier steps or a notebook have problems; if `strict`, changed code.
    """
    # It imports scikit-learn, which `status` does not need
    from vqa_utils.running.results import print_results

    paths, console = runner.paths, runner.console
    named = runner.config.data
    runner.config = config = with_data(runner.config)
    if config.data != named:
        console.print(f"data: {config.data}", markup=False)
    # Before `start_run` writes: a refused command leaves the run's settings as they were
    runner.check_whole(built_on(steps, scored_adapters(paths, config)))
    runner.tell_changes(steps, strict=strict)
    start_run(paths, config, check_folds=takes_folds_as_they_are(steps))
    console.print(f"run {paths.run_id}: {shown(paths.folder)}")
    start = time.time()
    runner.run(steps)
    times = time_table(paths.notebooks, [step.name for step in steps])
    print_table(console, "where the time went (seconds)", times)
    if steps[-1].stage in (ENSEMBLE, ANALYSIS):
        print_results(paths, config, console)
    console.print(f"{(time.time() - start) / 60:.1f} minutes")

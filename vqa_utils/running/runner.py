"""Run steps: reuse complete ones, execute the others in their order, folds side by side."""

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from vqa_utils.artifacts.fold_settings import fold_config
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.stop import end_if_asked, stoppable
from vqa_utils.config import Config
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.ensembling.members import scored_adapters
from vqa_utils.errors import RunError
from vqa_utils.planning.machine.gpus import find_gpus
from vqa_utils.running._markers import CHANGED, DONE, MISSING, Markers
from vqa_utils.running.archive.changes import tell_changes
from vqa_utils.running.notebooks import execution
from vqa_utils.running.notebooks.attempts import Attempts
from vqa_utils.running.notebooks.execution import NotebookStopped
from vqa_utils.running.notebooks.forked_kernels import forked_kernels
from vqa_utils.running.notebooks.kernels import clean_environment, end_kernels
from vqa_utils.running.notebooks.processes import NotebookProcess, Process
from vqa_utils.running.notebooks.side_by_side import SideBySide, fold_environments
from vqa_utils.running.run_clock import RunClock
from vqa_utils.running.stages import (
    Step,
    built_on,
    due_steps,
    grouped,
    next_notebook,
    predicted_folder,
)
from vqa_utils.running.terminal.events import tell, telling
from vqa_utils.running.terminal.live import progress_lines
from vqa_utils.running.terminal.whole_run import WholeRun
from vqa_utils.sharing.lender import Lender
from vqa_utils.sharing.seats import CrowdedOutOfMemory
from vqa_utils.sharing.shared_base import ALONE, Sharing, early_lender, shared_base

if TYPE_CHECKING:
    from vqa_utils.running.cluster.ray_cluster import RayCluster

ENDS_EARLY = (NotebookStopped, CrowdedOutOfMemory)  # a notebook goes on later


class Runner:
    """Executes the steps of one run.

    Attributes:
        paths: the run.
        out: the folder of new files; the run's own but for a prediction.
        config: the run's settings.
        console: the terminal.
        reuse: do not run a step again if its marker names these settings, inputs and outputs.
        ladder: after an out-of-memory error of a fold, try again with a rung.
        cell_timeout: the most seconds for a cell of a notebook; None sets no limit.
        cluster: where the notebooks of folds run; None for this machine.
        clock: says the expected end, and leaves out steps for which a time budget has no time.
    """

    def __init__(
        self,
        paths: RunPaths,
        config: Config,
        console: Console,
        *,
        reuse: bool,
        ladder: bool = True,
        cell_timeout: float | None = None,
    ):
        self.paths = self.out = paths
        self.config = config
        self.console = console
        self.reuse = reuse
        self.ladder = ladder
        self.cell_timeout = cell_timeout
        self.cluster: RayCluster | None = None
        self.clock = RunClock(paths, config, console)
        self._due: list[Step] = []
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
        self._due = due_steps(steps, self.is_reused)
        groups = grouped(steps)
        lent = [] if self.cluster else self._due_folds(steps)
        with (
            contextlib.ExitStack() as at_the_end,
            stoppable(self.paths),
            self.clock.watching(self._due),
            WholeRun(self.clock, len(steps), self.console) as whole,
            early_lender(self.paths, self.config, lent, predicted_folder(steps)) as lender,
        ):
            at_the_end.callback(end_kernels)
            for number, together in enumerate(groups):
                if together[0].stage.per_fold:
                    later = [step for group in groups[number:] for step in group]
                    self.clock.expect(due_steps(later, self.is_reused))  # folds may be as before
                    self._run_folds(together, lender, whole)
                    continue
                with progress_lines(self.console, whole.text) as progress:
                    for step in together:
                        self._run(step, progress)

    def _due_folds(self, steps: Sequence[Step]) -> list[Config]:
        """Return the settings of each fold with steps to execute, as far as is known by now."""
        due = [step for step in steps if not self.is_reused(step)]
        numbers = dict.fromkeys(step.fold for step in due if step.fold is not None)
        return [fold_config(self.paths.fold(number), self.config) for number in numbers]

    def _run_folds(self, steps: Sequence[Step], lender: Lender | None, whole: WholeRun) -> None:
        """Run steps of folds, side by side where that is possible."""
        folds = self._due_folds(steps)
        if self.cluster:
            self._run_side_by_side(steps, self.cluster.processes(len(folds)), ALONE, whole)
            return
        predict = predicted_folder(steps)
        with shared_base(self.paths, self.config, folds, self.console, lender, predict) as sharing:
            environments = sharing.environments or fold_environments(self.config, len(folds))
            names = dict.fromkeys(step.stage.name for step in steps)
            notebooks = [execution.NOTEBOOKS / f"{name}.ipynb" for name in names]
            with forked_kernels(environments, notebooks) as environments:
                processes = [NotebookProcess(environment) for environment in environments]
                self._run_side_by_side(steps, processes, sharing, whole)

    def _run_side_by_side(
        self, steps: Sequence[Step], processes: Sequence[Process], sharing: Sharing, whole: WholeRun
    ) -> None:
        """Run steps in processes; without any, one after the other in this one."""
        with progress_lines(self.console, whole.text) as progress:

            def run_in(step: Step, process: Process | None = None) -> None:
                self._run(step, progress, process, sharing)

            if processes:
                self.clock.at_once = functools.partial(_at_once, sharing, len(processes))
                refit = self.config.refit and self.config.ends_at_best
                together = SideBySide(
                    steps,
                    sharing,
                    run_in,
                    self._is_skipped,
                    self.console,
                    refit=self.config.adapter_numbers[-1] if refit else None,
                )
                together.run(processes)
                return
            for step in steps:
                run_in(step)

    def _is_skipped(self, step: Step) -> bool:
        """Tell whether a step needs no kernel: it is reused, or there is no time for it."""
        return self.is_reused(step) or self.clock.has_ended(step)

    def _run(
        self,
        step: Step,
        progress: Progress,
        process: Process | None = None,
        sharing: Sharing = ALONE,
    ) -> None:
        """Reuse or execute one step.

        Raises:
            Stopped: the run was asked to stop.
        """
        end_if_asked()
        markers = self._markers
        if self._is_due(step, markers):
            self._execute(step, markers, progress, process, sharing)

    def _is_due(self, step: Step, markers: Markers) -> bool:
        """Tell whether a step is to be executed; say why not, and set aside what it replaces."""
        state = markers.state(step)
        if state == DONE and self.reuse:
            self.console.print(f"  {step.name:<22} reused")
            tell(self.console, "notebook_reused", notebook=step.name)
            self.clock.through.add(step)
            return False
        if state == CHANGED and self.reuse:
            changes = ", ".join(markers.changes(step))
            self.console.print(f"  {step.name:<22} runs again: {changes}", markup=False)
        reason = self.clock.leaves_out(step, time.time())
        # Where there is no time to make it anew, what is whole stays, and an earlier submission;
        # other probabilities of a fold must not join those of these settings
        if state != MISSING and (not reason or (state == CHANGED and step.fold is not None)):
            markers.set_aside(step)
        if reason:
            self.console.print(f"  {step.name:<22} left out: {reason}", style="yellow")
            tell(self.console, "notebook_left_out", notebook=step.name, reason=reason)
        return not reason

    def _execute(
        self,
        step: Step,
        markers: Markers,
        progress: Progress,
        process: Process | None,
        sharing: Sharing,
    ) -> None:
        origin = markers.begin(step)
        waits = process and not find_gpus()  # on a CPU, folds need the host's memory
        following = "" if waits else next_notebook(step, self._due)
        try:
            attempts = Attempts(
                self.paths, self.config, self.console, self.ladder, sharing, self.cell_timeout
            )
            archived = markers.archived(step)
            with self.clock.working(step, archived), telling(self.console, step.name, ENDS_EARLY):
                attempts.execute(step, archived, progress, process, following)
        except NotebookStopped:
            end_if_asked()
            self.clock.leave_out(step)
            self.console.print(f"  {step.name:<22} stopped: the time budget", style="yellow")
            return
        except RunError:
            end_if_asked()  # it has ended early, or a signal to all processes has ended its kernel
            raise
        markers.write(step, origin)


def _at_once(sharing: Sharing, processes: int) -> int:
    """Count the folds at work at a time: those with a seat, where they share a base."""
    return processes if sharing is ALONE else min(processes, sharing.seats.count)

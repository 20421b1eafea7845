"""Execute a step in as many kernels as it takes: after out-of-memory errors, and once if it died."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from vqa_utils.artifacts.fold_settings import Rung, fold_config, prepare_fold, take_rung
from vqa_utils.artifacts.paths import FoldPaths, RunPaths
from vqa_utils.artifacts.stop import end_if_asked
from vqa_utils.config import Config
from vqa_utils.planning.ladder import next_rung
from vqa_utils.planning.machine.disk import DiskFull, drop_half_written
from vqa_utils.planning.machine.gpus import find_gpus, gpu_limits
from vqa_utils.planning.plan import assumed_gpus, make_plan
from vqa_utils.planning.shapes import shape_of
from vqa_utils.running.archive.notebooks import keep_attempt
from vqa_utils.running.notebooks.execution import NotebookError, OutOfMemory, execute
from vqa_utils.running.notebooks.processes import KernelDied, NodeLost, Process
from vqa_utils.running.stages import Step
from vqa_utils.running.terminal.live import follow
from vqa_utils.sharing.seats import CrowdedOutOfMemory
from vqa_utils.sharing.shared_base import Sharing, is_placed_alike


@dataclass(frozen=True)
class Attempts:
    """Executes steps of a run, each attempt in a fresh kernel.

    A training goes on from its last checkpoint.
    """

    paths: RunPaths
    config: Config
    """The run's settings."""
    console: Console
    ladder: bool
    """After an out-of-memory error of a fold, try again with a rung."""
    sharing: Sharing
    """Of a base, where the folds share one."""
    cell_timeout: float | None = None
    """The most seconds for a cell."""

    def execute(
        self,
        step: Step,
        archived: Path,
        progress: Progress,
        process: Process | None,
        following: str = "",
    ) -> None:
        """Execute a notebook; again after an out-of-memory error of a fold, or once if it died.

        Args:
            step: the notebook, and its fold.
            archived: its copy. Those of earlier attempts lie beside it.
            progress: gets its live line.
            process: runs it; this process if not given.
            following: the name of a notebook for this process, whose kernel imports meanwhile.

        Raises:
            KernelDied: twice.
            DiskFull: what was half-written is deleted.
            NotebookError: an error in a cell.
            NotebookStopped: it was asked to stop.
            LadderError: a GPU's memory ran out, and no change of the settings is left to try.
            CrowdedOutOfMemory: there are other folds on the GPUs, now one less at a time.
        """
        parameters = step.parameters(self.paths.run_id)
        fold = train_log = None
        if step.fold is not None:
            fold = self.paths.fold(step.fold)
            train_log = fold.train_log
            self._prepare(fold, trains=step.stage.trains)
        has_died = False
        while True:
            try:
                with follow(progress, self.console, step.name, train_log, step.fold):
                    name = step.stage.name
                    execute(name, archived, parameters, process, self.cell_timeout, following)
                return
            except DiskFull:
                if fold is not None:
                    drop_half_written(fold)
                raise
            except KernelDied as error:
                end_if_asked()  # a signal to all of the run's processes may have ended it
                if has_died:
                    raise
                has_died = not isinstance(error, NodeLost)  # machines may go as often as they like
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
                self._take_less(step, fold, error.out_of_memory)

    def _take_less(self, step: Step, fold: FoldPaths, ran_out: OutOfMemory) -> None:
        """Let a fold that ran out of memory take less of it in its next kernel.

        Raises:
            CrowdedOutOfMemory: there are other folds on the GPUs, now one less at a time.
        """
        if self.sharing.seats.shrink(step.name):
            raise CrowdedOutOfMemory(
                f"{step.name:<22} out of memory; from here on one fold less at a time"
            )
        rung = self._climb(fold, ran_out, trains=step.stage.trains)
        gpus = find_gpus()
        if gpus and not is_placed_alike(fold_config(fold, self.config), self.config, gpus):
            self.sharing.withdraw()
        self.console.print(f"  {step.name:<22} out of memory; {rung}", style="yellow", markup=False)

    def _prepare(self, fold: FoldPaths, *, trains: bool) -> None:
        """Write the settings of a fold, with the rungs of other folds if it trains."""
        numbers = self.config.adapter_numbers if trains else ()
        prepare_fold(fold, self.config, [self.paths.fold(number) for number in numbers])

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

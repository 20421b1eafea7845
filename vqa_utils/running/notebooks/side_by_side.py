"""Run steps of folds side by side, each in the next free process."""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from joblib import cpu_count
from rich.console import Console

from vqa_utils.artifacts.stop import asked_by
from vqa_utils.config import Config
from vqa_utils.planning.machine.gpus import find_gpus, visible_numbers
from vqa_utils.planning.machine.host import folds_on_cpu
from vqa_utils.planning.plan import fold_gpus
from vqa_utils.running.notebooks.execution import import_ahead
from vqa_utils.running.notebooks.processes import Environment, KernelDied, Process
from vqa_utils.running.stages import Step
from vqa_utils.setting_types import AUTO
from vqa_utils.sharing.seats import CrowdedOutOfMemory
from vqa_utils.sharing.shared_base import ALONE, Sharing


def fold_environments(config: Config, folds: int) -> list[Environment]:
    """The environments of the processes to run this many folds side by side.

    With GPUs, a fold gets one with room for its model. Without any, folds share the cores: small
    models with a thread each do more than one model with all threads. One fold more than cores
    keeps them busy until the last fold ends, where there is memory for it.

    Returns:
        At least two environments, or none if folds run one after the other.
    """
    gpus = find_gpus()
    if gpus:
        numbers = visible_numbers(len(gpus))
        places = fold_gpus(config, folds, gpus)
        if len(places) < 2:
            return []
        return [{"CUDA_VISIBLE_DEVICES": numbers[place]} for place in places]
    needs_all = len(config.max_memory) > 1 or config.device_map != "plan"
    cores = cpu_count()
    if folds < 2 or cores < 2 or needs_all:
        return []
    is_free = config.folds_at_once == AUTO
    most = min(cores + 1, folds_on_cpu()) if is_free else config.sharing_folds
    processes = min(folds, most)
    if processes < 2:
        return []
    threads = max(1, cores // processes)
    return [{"OMP_NUM_THREADS": str(threads)} for _ in range(processes)]


class SideBySide:
    """Steps at work side by side; a fold's later notebook waits for its earlier one.

    A waiting step holds a process, but never all of them: steps start in their order.

    Attributes:
        steps: of folds.
        sharing: of a base, where the folds share one.
        run_in: runs a step in a process, or reuses it.
        is_skipped: tells of a step whether it needs no process: it is reused, or there is no time for it.
        console: the terminal.
        refit: the number of a refit whose training waits for those of all folds; None for none.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        sharing: Sharing,
        run_in: Callable[[Step, Process], None],
        is_skipped: Callable[[Step], bool],
        console: Console,
        refit: int | None = None,
    ):
        self.steps = steps
        self.sharing = sharing
        self.run_in = run_in
        self.is_skipped = is_skipped
        self.console = console
        self.refit = refit
        self._free: queue.Queue[Process] = queue.Queue()
        self._is_stopped = threading.Event()

    def run(self, processes: Sequence[Process]) -> None:
        """Run the steps in these processes. All end before an error is raised."""
        latest: dict[int | None, Future] = {}  # by fold
        running = []
        with (
            # Contexts end in reverse: the threads' steps are through before the processes stop
            contextlib.ExitStack() as opened,
            ThreadPoolExecutor(max_workers=len(processes)) as threads,
        ):
            for process in processes:
                self._free.put(opened.enter_context(process))
            for step in self.steps:
                earlier = [latest[step.fold]] if step.fold in latest else []
                if step.stage.trains and step.fold == self.refit:
                    earlier = list(latest.values())
                latest[step.fold] = threads.submit(self._run_step, step, earlier)
                running.append(latest[step.fold])
            try:
                wait(running)
            except KeyboardInterrupt:
                for process in processes:
                    process.interrupt()
                raise
            finally:  # Ctrl-C: steps that have not begun leave their files as they are
                self._is_stopped.set()
                self.sharing.seats.close()
                threads.shutdown(wait=False, cancel_futures=True)
        for finished in running:
            finished.result()  # raises the step's error

    def _run_step(self, step: Step, earlier: Sequence[Future]) -> None:
        """Run a step in a process, once there is one and the earlier steps have ended."""
        process = self._free.get()
        try:
            self._wait_for_its_turn(step, earlier, process)
            if not self._is_stopped.is_set():
                self.run_in(step, process)
            return
        except CrowdedOutOfMemory as error:
            self.console.print(f"  {error}", style="yellow", markup=False)
        finally:
            self.sharing.seats.leave(step.name)
            self._free.put(process)
        self._run_step(step, ())  # when another fold has ended

    def _wait_for_its_turn(self, step: Step, earlier: Sequence[Future], process: Process) -> None:
        """Wait for the earlier steps and a seat, while the step's kernel imports."""
        shares = self.sharing is not ALONE
        if shares and not asked_by() and not self.is_skipped(step):
            is_last = step is self.steps[-1]
            kernels = 1 if is_last else 1 + self.sharing.kernels_ahead
            with contextlib.suppress(KernelDied):  # it only saves time
                import_ahead(step.stage.name, process, kernels)
        for one in earlier:
            one.result()  # raises its error: no scoring without an adapter
        if shares and not self.is_skipped(step):
            self.sharing.seats.take(step.name)

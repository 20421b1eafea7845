"""Run steps of folds side by side, each in the next free process."""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from rich.console import Console

from vqa_utils.artifacts.stop import asked_by
from vqa_utils.running.notebooks.execution import (
    Environment,
    KernelDied,
    NotebookProcess,
    import_ahead,
)
from vqa_utils.running.stages import Step
from vqa_utils.sharing.seats import CrowdedOutOfMemory
from vqa_utils.sharing.shared_base import ALONE, Sharing


class SideBySide:
    """Steps at work side by side; a fold's later notebook waits for its earlier one.

    A waiting step holds a process, but never all of them: steps start in their order.

    Attributes:
        steps: of folds.
        sharing: of a base, where the folds share one.
        run_in: runs a step in a process, or reuses it.
        is_skipped: tells of a step whether it needs no process: it is reused, or there is no time for it.
        console: the terminal.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        sharing: Sharing,
        run_in: Callable[[Step, NotebookProcess], None],
        is_skipped: Callable[[Step], bool],
        console: Console,
    ):
        self.steps = steps
        self.sharing = sharing
        self.run_in = run_in
        self.is_skipped = is_skipped
        self.console = console
        self._free: queue.Queue[NotebookProcess] = queue.Queue()
        self._is_stopped = threading.Event()

    def run(self, environments: Sequence[Environment]) -> None:
        """Run the steps, in a process for each environment. All end before an error is raised."""
        latest: dict[int | None, Future] = {}  # by fold
        running = []
        with (
            # Contexts end in reverse: the threads' steps are through before the processes stop
            contextlib.ExitStack() as processes,
            ThreadPoolExecutor(max_workers=len(environments)) as threads,
        ):
            for environment in environments:
                self._free.put(processes.enter_context(NotebookProcess(environment)))
            for step in self.steps:
                latest[step.fold] = threads.submit(self._run_step, step, latest.get(step.fold))
                running.append(latest[step.fold])
            try:
                wait(running)
            finally:  # Ctrl-C: steps that have not begun leave their files as they are
                self._is_stopped.set()
                self.sharing.seats.close()
                threads.shutdown(wait=False, cancel_futures=True)
        for finished in running:
            finished.result()  # raises the step's error

    def _run_step(self, step: Step, earlier: Future | None) -> None:
        """Run a step in a process, once there is one and its fold's earlier step has ended."""
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
        self._run_step(step, None)  # when another fold has ended

    def _wait_for_its_turn(
        self, step: Step, earlier: Future | None, process: NotebookProcess
    ) -> None:
        """Wait for the fold's earlier step and a seat, while the step's kernel imports."""
        shares = self.sharing is not ALONE
        if shares and not asked_by() and not self.is_skipped(step):
            is_last = step is self.steps[-1]
            kernels = 1 if is_last else 1 + self.sharing.kernels_ahead
            with contextlib.suppress(KernelDied):  # it only saves time
                import_ahead(step.stage.name, process, kernels)
        if earlier is not None:
            earlier.result()  # raises its error: no scoring without an adapter
        if shares and not self.is_skipped(step):
            self.sharing.seats.take(step.name)

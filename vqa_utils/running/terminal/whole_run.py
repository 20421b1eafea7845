"""Describe the whole run in a line: notebooks done, time left, GPU memory."""

import contextlib
import threading
import time
from types import TracebackType

from rich.console import Console

from vqa_utils.artifacts.timings import duration
from vqa_utils.errors import VqaError
from vqa_utils.planning.machine.gpus import find_gpus, used_memory
from vqa_utils.running.run_clock import RunClock
from vqa_utils.running.terminal.console import SparseConsole

SAMPLE_SECONDS = 5.0  # nvidia-smi takes up to a second, and the time left reads the folds' logs


class WholeRun:
    """Looks at a run now and then, if there is a live terminal to show it on.

    Attributes:
        clock: of the run.
        count: of the command's notebooks.
        console: the terminal.
    """

    def __init__(self, clock: RunClock, count: int, console: Console):
        self.clock = clock
        self.count = count
        self.console = console
        self._expected_end: float | None = None
        self._has_gpus = False
        self._memory: list[tuple[float, float]] = []  # of each GPU: GiB in use, and the peak
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._is_live = console.is_terminal and not isinstance(console, SparseConsole)

    def __enter__(self) -> "WholeRun":
        """Begin to look."""
        if self._is_live:
            self._has_gpus = bool(find_gpus())
            self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Look no more; a look at work is not waited for."""
        self._is_over.set()

    def text(self) -> str:
        """Return such as "3 of 9 notebooks, 5 min left, GPU 0: 9.1 GiB (peak 11.8)"."""
        parts = [f"{len(self.clock.through)} of {self.count} notebooks"]
        if self._expected_end is not None:
            left = max(0.0, self._expected_end - time.time())
            parts.append(f"{duration(left)} left")
        for number, (used, peak) in enumerate(self._memory):
            parts.append(f"GPU {number}: {used:.1f} GiB (peak {peak:.1f})")
        return "  " + ", ".join(parts)

    def look(self) -> None:
        """Expect the end, and sample the GPUs' memory."""
        self._expected_end = self.clock.expected_end(time.time())
        if not self._has_gpus:
            return
        used = used_memory()
        if used:
            earlier = [peak for _, peak in self._memory] or used
            peaks = map(max, used, earlier)
            self._memory = list(zip(used, peaks, strict=True))

    def _watch(self) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(OSError, VqaError):  # the next look counts
                self.look()
            self._is_over.wait(SAMPLE_SECONDS)

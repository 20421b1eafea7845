"""Grant each GPU to one fold at a time, first come, first served."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable

# Seconds after which a wait is reported, and then again; a turn is a part of one step
STALL_SECONDS = 300

# Called with the GPU, who holds it, who waits, and the seconds of the wait
Report = Callable[[int, str, str, float], None]


class Turns:
    """A queue for each GPU. The first in it holds the GPU.

    Holders are named, such as "03_train_fold-fold1", and stand in a queue once at most.
    """

    def __init__(self, report: Report, stall_seconds: float = STALL_SECONDS):
        self.report = report
        self.stall_seconds = stall_seconds
        self._queues: dict[int, deque[str]] = defaultdict(deque)
        self._moved = threading.Condition()  # notified when a queue gets shorter

    def take(self, gpu: int, holder: str) -> None:
        """Wait until the GPU is the holder's."""
        start = time.monotonic()
        with self._moved:
            queue = self._queues[gpu]
            queue.append(holder)
            while queue[0] != holder:
                if not self._moved.wait(self.stall_seconds):
                    self.report(gpu, queue[0], holder, time.monotonic() - start)

    def give(self, gpu: int, holder: str) -> None:
        """Let the next one have the GPU."""
        with self._moved:
            self._queues[gpu].remove(holder)
            self._moved.notify_all()

    def leave(self, holder: str) -> None:
        """Take a holder out of all queues: its process has ended."""
        with self._moved:
            for queue in self._queues.values():
                if holder in queue:
                    queue.remove(holder)
            self._moved.notify_all()

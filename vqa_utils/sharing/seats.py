"""Let so many folds be at work at a time, first come, first served; fewer when memory runs out."""

import threading
from collections import deque

from vqa_utils.errors import RunError


class CrowdedOutOfMemory(RunError):
    """A GPU's memory ran out with several folds on it: the first rung is fewer of them."""


class Seats:
    """A queue of steps. The first `count` of them are at work, and have the base's memory.

    Kernels ask for their seats, and the runner gives them back once it knows how a step has ended:
    after one that ran out of memory, nobody follows. Steps that wait have started already, as a
    kernel takes longer to start and to import than a base to attach.

    Attributes:
        count: folds at a time.
    """

    def __init__(self, count: int):
        self.count = count
        self._queue: deque[str] = deque()
        self._moved = threading.Condition()  # notified when the queue gets shorter

    def take(self, holder: str) -> None:
        """Wait for a seat; a holder that has one keeps it."""
        with self._moved:
            if holder not in self._queue:
                self._queue.append(holder)
            # It may leave while it waits: its process has ended
            while holder in self._queue and self._queue.index(holder) >= self.count:
                self._moved.wait()

    def leave(self, holder: str) -> None:
        """Let the next one have the seat."""
        with self._moved:
            if holder in self._queue:
                self._queue.remove(holder)
            self._moved.notify_all()

    def limit(self, count: int) -> None:
        """Allow `count` folds at a time at the most; those at work stay."""
        with self._moved:
            self.count = min(self.count, count)

    def shrink(self, count: int) -> bool:
        """Make it one fold less at a time, after one ran out of memory.

        Args:
            count: as it was when that fold began. With fewer now, another one has run out since,
                and they stay as many.

        Returns:
            False if there was no other fold.
        """
        self.limit(max(1, count - 1))
        return count > 1

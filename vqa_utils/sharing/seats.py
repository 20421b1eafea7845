"""Let so many folds be at work at a time, first come, first served; fewer when memory runs out."""

import threading
from collections import deque
from collections.abc import Callable

from vqa_utils.errors import RunError


class CrowdedOutOfMemory(RunError):
    """A GPU's memory ran out with several folds on it: the first rung is fewer of them."""


class Seats:
    """A queue of steps. The first `count` of them are at work, and have the base's memory.

    The runner opens a step before its kernel starts, and takes its seat back once it knows how it
    has ended: after one that ran out of memory, nobody follows. The kernel asks for the seat. Steps
    that wait have started already, as a kernel takes longer to start and to import than a base to
    attach.

    Attributes:
        count: folds at a time.
    """

    def __init__(self, count: int):
        self.count = count
        self._opened: dict[str, Callable[[], None]] = {}  # by step, what to do as it is seated
        self._queue: deque[str] = deque()
        self._seated: dict[str, int] = {}  # by step, `count` at that time
        self._moved = threading.Condition()  # notified when a step may go on, or has to end

    def open(self, step: str, when_seated: Callable[[], None]) -> None:
        """Let a step ask for a seat; `when_seated` is called before it gets the answer."""
        with self._moved:
            self._opened[step] = when_seated

    def take(self, step: str) -> bool:
        """Wait for a seat; a step that has one keeps it.

        Returns:
            False if the step is not open, or not any more.
        """
        with self._moved:
            if step in self._seated:
                return True
            if step not in self._opened:
                return False
            self._queue.append(step)
            while step in self._queue and self._queue.index(step) >= self.count:
                self._moved.wait()
            if step not in self._queue:
                return False
            self._seated[step] = self.count
            self._opened[step]()
            return True

    def leave(self, step: str) -> None:
        """Let the next one have the step's seat, if it has one."""
        with self._moved:
            self._opened.pop(step, None)
            self._seated.pop(step, None)
            if step in self._queue:
                self._queue.remove(step)
            self._moved.notify_all()

    def close(self) -> None:
        """Refuse those who wait, and all who come; those at work stay."""
        with self._moved:
            self._opened.clear()
            self._queue = deque(self._seated)
            self._moved.notify_all()

    def limit(self, count: int) -> None:
        """Allow `count` folds at a time at the most; those at work stay."""
        with self._moved:
            self.count = min(self.count, count)

    def shrink(self, step: str) -> bool:
        """Make it one fold less at a time than when this step was seated: it ran out of memory.

        If another one has run out since, they stay as many.

        Returns:
            False if there was no other fold then.
        """
        count = self._seated.get(step, 1)
        self.limit(max(1, count - 1))
        return count > 1

"""Let so many folds be at work at a time, first come, first served; fewer when memory runs out."""

import threading
from collections import deque

from vqa_utils.errors import RunError


class CrowdedOutOfMemory(RunError):
    """A GPU's memory ran out with several folds on it: the first rung is fewer of them."""


class Seats:
    """A queue of steps. The first `count` of them are at work, and have the base's memory.

    Attributes:
        count: folds at a time.
    """

    def __init__(self, count: int):
        self.count = count
        self._is_open = self._is_closed = False
        self._queue: deque[str] = deque()
        self._seated: dict[str, int] = {}  # by step, `count` at that time
        self._moved = threading.Condition()  # notified when a step may go on

    def open(self) -> None:
        """Begin: it is known by now whether each fold needs room for a base of its own."""
        with self._moved:
            self._is_open = True
            self._moved.notify_all()

    def take(self, step: str) -> None:
        """Wait for a seat, or until the run stops."""
        with self._moved:
            self._queue.append(step)
            self._moved.wait_for(lambda: self._is_closed or self._has_room(step))
            self._seated[step] = self.count

    def _has_room(self, step: str) -> bool:
        return self._is_open and self._queue.index(step) < self.count

    def leave(self, step: str) -> None:
        """Let the next one have the step's seat, if it has one."""
        with self._moved:
            self._seated.pop(step, None)
            if step in self._queue:
                self._queue.remove(step)
            self._moved.notify_all()

    def close(self) -> None:
        """Let nobody wait any more: the run stops."""
        with self._moved:
            self._is_closed = True
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

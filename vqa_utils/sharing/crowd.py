"""Count the folds around one base, and make them fewer when memory runs out."""

import threading

from vqa_utils.errors import RunError
from vqa_utils.sharing.shared_base import Sharing


class CrowdedOutOfMemory(RunError):
    """A GPU's memory ran out with several folds on it: the first rung is fewer of them.

    Attributes:
        leaves: the fold's process is the one to do without.
    """

    def __init__(self, message: str, *, leaves: bool):
        super().__init__(message)
        self.leaves = leaves


class Crowd:
    """The folds at a time on the same GPUs.

    Attributes:
        sharing: the base around which they are.
        size: how many there are, at the most.
    """

    def __init__(self, sharing: Sharing):
        self.sharing = sharing
        self.size = len(sharing.environments)
        self._lock = threading.Lock()

    def leave(self, size: int) -> bool | None:
        """Make it one fold less at a time.

        Args:
            size: as it was when the fold that ran out began.

        Returns:
            True if the fold's process has to go, False if another one has gone since, and None if
            there was no other.
        """
        with self._lock:
            if size <= 1:
                return None
            if self.size < size:
                return False
            self.size -= 1
            return True

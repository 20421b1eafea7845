"""Define the base classes of errors that run_all.py prints without a traceback."""

from collections.abc import Iterable


class VqaError(Exception):
    """A problem with its place, the expected and the found value, and the next thing to do."""


class RunError(VqaError):
    """A run cannot start or go on."""


class Stopped(KeyboardInterrupt):
    """A run has stopped, as a signal asked it to; what it has done is kept."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def listed(title: str, problems: Iterable[str]) -> str:
    """Put a title and all problems into one message, a line each."""
    lines = ["  - " + problem.replace("\n", "\n    ") for problem in problems]
    return "\n".join([title, *lines])

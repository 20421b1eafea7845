"""Define the base classes of errors that run_all.py prints without a traceback."""

import difflib
from collections.abc import Callable, Iterable, Sequence


class VqaError(Exception):
    """A problem with its place, the expected and the found value, and the next thing to do."""


class RunError(VqaError):
    """A run cannot start or go on."""


class Stopped(KeyboardInterrupt):
    """A run has stopped, as a signal asked it to; what it has done is kept."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Name the known word that a misspelt one is most like: "; did you mean image_side?", or ""."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def problems_of(checks: Iterable[Callable[[], object]]) -> list[str]:
    """Make every check; return the messages of their errors, each once."""
    problems: dict[str, None] = {}
    for check in checks:
        try:
            check()
        except VqaError as error:
            problems[str(error)] = None
    return list(problems)


def listed(title: str, problems: Iterable[str]) -> str:
    """Put a title and all problems into one message, a line each."""
    lines = ["  - " + problem.replace("\n", "\n    ") for problem in problems]
    return "\n".join([title, *lines])


def counted(of: str, problems: Sequence[str]) -> str:
    """Put what has problems, their number, and all of them into one message, a line each."""
    plural = "" if len(problems) == 1 else "s"
    return listed(f"{of}: {len(problems)} problem{plural}", problems)

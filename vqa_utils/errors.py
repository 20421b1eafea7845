"""The root of the errors that tell a user what to do: run_all.py prints them without a traceback."""


class VqaError(Exception):
    """What is wrong, what was expected, what was found, where, and what to do next."""


class RunError(VqaError):
    """A run that cannot start or go on."""

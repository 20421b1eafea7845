"""Define the base classes of errors that run_all.py prints without a traceback."""


class VqaError(Exception):
    """A problem with its place, the expected and the found value, and the next thing to do."""


class RunError(VqaError):
    """A run cannot start or go on."""

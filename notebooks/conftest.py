"""Check the notebooks in runs of their own, wherever pytest starts."""

pytest_plugins = ("tests.isolated_runs",)

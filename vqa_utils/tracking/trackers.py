"""Report to trackers: a run of the tracker for each fold and for the ensemble, all in one group."""

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vqa_utils.config import Config
from vqa_utils.errors import RunError

PROJECT = "vqa"
# Folders of trackers, beside those of runs
TENSORBOARD, TRACKIO = "tensorboard", "trackio"


@dataclass(frozen=True)
class Tracked:
    """What a tracker is told of a fold, or of the ensemble, as it begins."""

    folder: Path
    """Of the run; its name is the group's."""
    part: str
    """Such as fold0."""
    settings: dict[str, Any]
    step: int = 0
    """From which it goes on."""

    @property
    def beside_runs(self) -> Path:
        """The folder of runs: what trackers write names users and hosts."""
        return self.folder.parent

    @property
    def group(self) -> str:
        return self.folder.name

    @property
    def name(self) -> str:
        return f"{self.folder.name}-{self.part}"


class Tracker(Protocol):
    """Shows trainings: a service, or files."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Report numbers of a step."""

    def draw(self, name: str, figure: Figure) -> None:
        """Report a figure."""

    def close(self) -> None:
        """End the run of the tracker."""


class TensorBoard:
    """Files in `runs/tensorboard/<run>`: their names have the host's, which a run's have not."""

    def __init__(self, tracked: Tracked):
        from torch.utils.tensorboard import SummaryWriter

        folder = tracked.beside_runs / TENSORBOARD / tracked.group / tracked.part
        # One that goes on writes its later steps anew
        self.writer = SummaryWriter(folder, purge_step=tracked.step + 1)
        rows = [f"| {name} | {value} |" for name, value in tracked.settings.items()]
        self.writer.add_text("settings", "\n".join(["| setting | value |", "| --- | --- |", *rows]))

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def draw(self, name: str, figure: Figure) -> None:
        self.writer.add_figure(name, figure, close=False)

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """A database in `runs/trackio`, or what trackio's own variables name.

    `TRACKIO_DIR=runs/trackio trackio show` shows it.
    """

    def __init__(self, tracked: Tracked):
        # It reads the variable as it is imported
        os.environ.setdefault("TRACKIO_DIR", str(tracked.beside_runs / TRACKIO))
        import trackio

        self.trackio = trackio
        trackio.init(
            project=PROJECT,
            name=tracked.name,
            group=tracked.group,
            config=tracked.settings,
            resume="allow",
            embed=False,  # no dashboard in the notebook
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self.trackio.log(values, step=step)

    def draw(self, name: str, figure: Figure) -> None:
        self.trackio.log({name: self.trackio.Image(_pixels(figure))})

    def close(self) -> None:
        self.trackio.finish()


class WeightsAndBiases:
    """wandb, by its own variables (WANDB_PROJECT, WANDB_MODE, ...)."""

    def __init__(self, tracked: Tracked):
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=tracked.name,
            id=tracked.name,
            group=tracked.group,
            config=tracked.settings,
            resume="allow",
            dir=tracked.beside_runs,  # in its folder `wandb`
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def draw(self, name: str, figure: Figure) -> None:
        self.run.log({name: self.wandb.Image(_pixels(figure))})

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """mlflow, by its own variables (MLFLOW_TRACKING_URI, ...)."""

    def __init__(self, tracked: Tracked):
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=tracked.name, tags={"group": tracked.group})
        mlflow.log_params(tracked.settings)

    def log(self, values: dict[str, float], step: int) -> None:
        self.mlflow.log_metrics(values, step=step)

    def draw(self, name: str, figure: Figure) -> None:
        self.mlflow.log_figure(figure, f"{name}.png")

    def close(self) -> None:
        self.mlflow.end_run()


MAKERS: dict[str, Callable[[Tracked], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def check_trackers(config: Config) -> None:
    """Refuse trackers that are not installed.

    Raises:
        RunError: with their names.
    """
    missing = [name for name in config.report_to if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(missing)
        raise RunError(
            f"--report-to: expected the installed packages {packages}, found none of them; "
            f"pip install {packages}"
        )


class Trackers:
    """Those that a run's settings name. One that fails is told no more: it costs no run."""

    def __init__(self, config: Config, tracked: Tracked):
        """Begin a run of each tracker."""
        self._trackers: dict[str, Tracker] = {}
        for name in config.report_to:
            self._try(name, functools.partial(self._begin, name, tracked))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report numbers of a step."""
        self._each(lambda tracker: tracker.log(dict(values), step))

    def draw(self, name: str, figure: Figure) -> None:
        """Report a figure."""
        self._each(lambda tracker: tracker.draw(name, figure))

    def close(self) -> None:
        """End the run of each tracker."""
        self._each(lambda tracker: tracker.close())

    def _begin(self, name: str, tracked: Tracked) -> None:
        self._trackers[name] = MAKERS[name](tracked)

    def _each(self, report: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            self._try(name, functools.partial(report, tracker))

    def _try(self, name: str, report: Callable[[], None]) -> None:
        try:
            report()
        except Exception as error:  # a tracker's own: of its network, its disk, its account
            self._trackers.pop(name, None)
            print(f"{name} is told no more: {type(error).__name__}: {error}")


def _pixels(figure: Figure) -> np.ndarray:
    """Return a figure's pixels, [height, width, 3] of uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

"""Report a training to trackers, as a callback."""

from typing import Any

from transformers import TrainerCallback

from vqa_utils.artifacts.files import settings_to_json
from vqa_utils.artifacts.paths import FoldPaths
from vqa_utils.config import Config
from vqa_utils.tracking.trackers import Tracked, Trackers


class Tracking(TrainerCallback):
    """Reports the Trainer's log: each step, each evaluation, and at last the kept epoch."""

    def __init__(self, config: Config, paths: FoldPaths):
        self.config = config
        self.paths = paths
        self.trackers: Trackers | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the runs of the trackers."""
        folder = self.paths.folder
        settings = settings_to_json(self.config)
        tracked = Tracked(folder.parent, folder.name, settings, state.global_step)
        self.trackers = Trackers(self.config, tracked)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report the numbers of a step, or of an evaluation."""
        if self.trackers is None:
            return
        values = {_tracked_name(name): value for name, value in (logs or {}).items()}
        self.trackers.log(values, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the kept epoch's scores, and end the trackers' runs."""
        if self.trackers is None:
            return
        for entry in state.log_history:
            if state.best_metric is not None and entry.get("eval_log_loss") == state.best_metric:
                kept = {name: entry[f"eval_{name}"] for name in ("accuracy", "log_loss")}
                values = {f"kept epoch/{name}": value for name, value in kept.items()}
                self.trackers.log(values, state.global_step)
        self.trackers.close()


def _tracked_name(name: str) -> str:
    """Tell a training's values from those of the held-out rows."""
    part, _, rest = name.partition("_")
    return f"held out/{rest}" if part == "eval" else f"training/{name}"

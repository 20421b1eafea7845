"""Name every path of the project and of a run, in one place."""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
DEMO_MODEL = ROOT / "vqa_utils" / "tiny_base" / "model"
SHAPES = ROOT / "vqa_utils" / "planning" / "model_configs"
FOLD = "fold"  # before the number, in the name of a fold's folder
CONFIG_BESIDE_ADAPTER = "vqa_config.json"
RUNS_VARIABLE = "VQA_RUNS_DIR"  # points the tests, or a user with a larger disk, elsewhere


def runs_dir() -> Path:
    """The folder of all runs: the environment variable VQA_RUNS_DIR, or `runs/` of the repository.

    Where the repository cannot be written, as a dataset on Kaggle, it is `runs/` of the working
    directory.
    """
    given = os.environ.get(RUNS_VARIABLE)
    if given:
        return Path(given).absolute()
    beside_code = ROOT / "runs"
    return beside_code if os.access(beside_code, os.W_OK) else Path.cwd() / "runs"


def demo_data_dir() -> Path:
    """easy-VQA in the challenge's format; made once, shared by all runs."""
    return runs_dir() / "demo-data"


def hard_data_dir() -> Path:
    """hard-vqa in the challenge's format; made once, shared by all runs."""
    return runs_dir() / "hard-data"


def picture_copies_dir() -> Path:
    """Reduced copies of large pictures; shared by all runs (see `data.pictures.copies`)."""
    return runs_dir() / ".pictures"


def comparison_file() -> Path:
    """The table of the last comparison of runs."""
    return runs_dir() / "compare.csv"


def shown(path: Path) -> str:
    """Write a path for people so that it can be opened: from the working directory on, or whole.

    In a notebook, a file of a run is written from the runs folder on: its copies move.
    """
    here = Path.cwd()
    if path.is_relative_to(runs_dir()) and here == NOTEBOOKS:
        return f"runs/{path.relative_to(runs_dir()).as_posix()}"
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)


@dataclass(frozen=True)
class FoldPaths:
    """The files of one fold: `adapter`, its training log, its probabilities."""

    folder: Path

    @property
    def number(self) -> int:
        """Of the fold, or the refit's."""
        return int(self.folder.name.removeprefix(FOLD))

    def beside(self, number: int) -> "FoldPaths":
        """Name another fold's files, of the same run."""
        return FoldPaths(self.folder.with_name(f"{FOLD}{number}"))

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def adapter_config(self) -> Path:
        """The settings of its training."""
        return self.adapter / CONFIG_BESIDE_ADAPTER

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def train_log(self) -> Path:
        return self.folder / "train_log.csv"

    @property
    def meta(self) -> Path:
        """Written last: the fold is trained."""
        return self.folder / "meta.json"

    @property
    def config(self) -> Path:
        """The fold's settings, beside the run's settings at the time."""
        return self.folder / "config.json"

    @property
    def rungs(self) -> Path:
        """The log of changes after out-of-memory errors."""
        return self.folder / "rungs.json"

    def probs(self, rows: str) -> Path:
        """Probabilities of `rows`: oof, test, zero_shot, blank or zero_shot_test."""
        return self.folder / f"probs_{rows}.csv"

    def orders(self, rows: str) -> Path:
        """Probabilities of `rows` by option order; only with several orders."""
        return self.folder / f"probs_{rows}_orders.csv"

    def scored(self, rows: str) -> list[Path]:
        """The files with probabilities of `rows`."""
        return [path for path in (self.probs(rows), self.orders(rows)) if path.exists()]


@dataclass(frozen=True)
class RunPaths:
    """The files of one run, `runs/<run_id>/`."""

    run_id: str

    @property
    def folder(self) -> Path:
        return runs_dir() / self.run_id

    @property
    def lock(self) -> Path:
        """Beside the run: its folder may not be there yet."""
        return runs_dir() / ".locks" / self.run_id

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def provenance(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def model(self) -> Path:
        """The files of the run's model, by a hash: it may lie in another folder later."""
        return self.folder / "model.json"

    @property
    def images(self) -> Path:
        """What is known of each picture, so that it is read once (see `data.pictures.images`)."""
        return self.folder / "images.csv"

    @property
    def folds(self) -> Path:
        return self.folder / "folds.csv"

    @property
    def extra_folds(self) -> Path:
        """The folds to leave an extra row out of; only with `extra_train`."""
        return self.folder / "folds_extra.csv"

    @property
    def notebooks(self) -> Path:
        return self.folder / "notebooks"

    @property
    def stages(self) -> Path:
        """One marker a finished step: its settings, inputs and outputs, by hash."""
        return self.folder / "stages"

    @property
    def ensemble(self) -> Path:
        return self.folder / "ensemble"

    @property
    def members(self) -> Path:
        """The members of the ensemble, and the temperatures or weights in use."""
        return self.ensemble / "members.json"

    @property
    def report(self) -> Path:
        return self.folder / "report"

    @property
    def results(self) -> Path:
        """The results of 06_analysis as data, which the page shows."""
        return self.report / "results.json"

    @property
    def page(self) -> Path:
        """The run's page, written again and again while it goes on."""
        return self.report / "index.html"

    @property
    def lender_log(self) -> Path:
        """Why the base of all folds could not be loaded."""
        return self.folder / "lender.log"

    @property
    def progress(self) -> Path:
        """How far the run's last command is, for its page."""
        return self.folder / "progress.json"

    def fold(self, k: int) -> FoldPaths:
        return FoldPaths(self.folder / f"{FOLD}{k}")

    def submission(self, use_kfold: bool) -> Path:
        name = "submission_ensemble.csv" if use_kfold else "submission_single.csv"
        return self.folder / name

    def predicting(self, predict: str) -> "RunPaths":
        """The folder of the answers to another test set, named after its folder `predict`.

        This run if `predict` is empty.
        """
        if not predict:
            return self
        # Resolved first: Path(".") has no name
        return RunPaths(f"{self.run_id}/predict/{Path(predict).resolve().name}")

"""Runs the notebooks with papermill: each one executed and archived, and what is whole and unchanged reused."""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import papermill
from nbclient.exceptions import DeadKernelError
from rich.console import Console

from vqa_utils.artifacts import hashes, read_json, read_probabilities, write_csv, write_json
from vqa_utils.config import Config
from vqa_utils.data import load_test
from vqa_utils.ensemble import has_settings, mean_probabilities, submission
from vqa_utils.paths import NOTEBOOKS, RunPaths, shown
from vqa_utils.runs import data_hash
from vqa_utils.stages import RunError, Step
from vqa_utils.terminal import following


class Runner:
    """Executes the steps of one run."""

    def __init__(self, paths: RunPaths, config: Config, console: Console, *, reuse: bool):
        """With `reuse`, a step whose marker names these settings, inputs and outputs is not run again."""
        self.paths, self.config, self.console, self.reuse = paths, config, console, reuse
        self._data_hash = ""

    def state(self, step: Step) -> str:
        """`done` (its marker names these settings, inputs and outputs), `changed`, or `missing`."""
        marker = self._marker(step)
        if not marker.exists():
            return "missing"
        return "done" if read_json(marker) == self._record(step) else "changed"

    def table(self, steps: list[Step]) -> pd.DataFrame:
        """A line a step: `notebook`, `parameters`, `state`, and what `a run would` do."""
        words = {"done": "reuse" if self.reuse else "run again", "changed": "run again", "missing": "run"}
        rows = [(step.name, step.parameters(self.paths.run_id), self.state(step)) for step in steps]
        return pd.DataFrame(
            [(name, " ".join(f"{k}={v}" for k, v in given.items()), state, words[state]) for name, given, state in rows],
            columns=["notebook", "parameters", "state", "a run would"],
        )

    def run(self, step: Step) -> None:
        """Execute one notebook into the run's archive, then write its marker; or say that it is reused.

        Raises:
            RunError: the notebook failed, or did not write what it should; its archived copy is named.
        """
        state = self.state(step)
        if state == "done" and self.reuse:
            self.console.print(f"  {step.name:<22} reused")
            return
        if state != "missing":
            self._set_aside(step)
        archived = self.paths.notebooks / f"{step.name}.ipynb"
        train_log = self.paths.fold(step.fold).train_log if step.fold is not None else None
        execute(step.stage.name, archived, step.parameters(self.paths.run_id), self.console, train_log)
        absent = [path for path in step.outputs(self.paths.folder) if not path.exists()]
        if absent:
            raise RunError(f"{shown(archived)}: expected it to write {', '.join(map(shown, absent))}, found nothing there")
        write_json(self._marker(step), self._record(step))

    def _set_aside(self, step: Step) -> None:
        """Move what a step wrote for other settings or inputs to `replaced/`: not taken for new, and not lost."""
        aside = self.paths.folder / "replaced" / time.strftime("%Y%m%d-%H%M%S")
        for path in [*step.outputs(self.paths.folder), self._marker(step)]:
            if path.exists():
                kept = aside / path.relative_to(self.paths.folder)
                kept.parent.mkdir(parents=True, exist_ok=True)
                path.rename(kept)

    def _record(self, step: Step) -> dict[str, Any]:
        if not self._data_hash:
            self._data_hash = data_hash(self.config)
        run = self.paths.folder
        files = {"inputs": hashes(step.inputs(run), run), "outputs": hashes(step.outputs(run), run)}
        settings = self.config.training_hash if step.stage.trains else self.config.hash
        return {"config": settings, "data": self._data_hash, **files}

    def _marker(self, step: Step) -> Path:
        return self.paths.stages / f"{step.name}.json"


def execute(name: str, archived: Path, parameters: dict[str, Any], console: Console, train_log: Path | None = None) -> None:
    """Run a notebook with papermill in `notebooks/`; the copy is written cell by cell, a failing one too.

    Args:
        name: the notebook's, without its ending.
        train_log: a log that the terminal follows while the notebook writes it.

    Raises:
        RunError: an unknown parameter, an error in a cell, or a kernel that died.
    """
    source = NOTEBOOKS / f"{name}.ipynb"
    known = papermill.inspect_notebook(str(source))
    unknown = sorted(parameters.keys() - known.keys())
    if unknown:
        raise RunError(f"{source.name}: expected some of the parameters {sorted(known)}, found {unknown}")
    archived.parent.mkdir(parents=True, exist_ok=True)
    try:
        with following(archived.stem, train_log, console):
            papermill.execute_notebook(
                str(source), str(archived), parameters, cwd=str(NOTEBOOKS), kernel_name="python3", progress_bar=False
            )
    except papermill.PapermillExecutionError as error:
        raise RunError(f"{archived.stem} failed: {error.ename}: {error.evalue}\nnotebook: {shown(archived)}") from error
    except DeadKernelError as error:
        reason = "its kernel died, which mostly means that the machine's memory ran out"
        raise RunError(f"{archived.stem}: {reason}\nnotebook: {shown(archived)}") from error


def predict(paths: RunPaths, config: Config, folder: Path, console: Console) -> Path:
    """Answer another test set with the run's adapters: 04_infer for each trained fold, and the mean of the folds.

    Returns:
        The submission's path, `runs/<run_id>/predict/<name of the folder>/submission_*.csv`.

    Raises:
        RunError: the run has no trained fold, or has answered another folder of the same name.
        DataError: the folder's test.csv, its sample_submission.csv or a picture has problems.
    """
    test, sample = load_test(folder)
    out = paths.predicting(str(folder))
    trained = [k for k in config.fold_numbers if paths.fold(k).meta.exists() and has_settings(paths.fold(k), config)]
    if not trained:
        raise RunError(f"{shown(paths.folder)}: expected a trained fold, found none; run notebook 03_train_fold first")
    asked = {"folder": str(folder.resolve())}
    if out.provenance.exists() and read_json(out.provenance) != asked:
        before = read_json(out.provenance)["folder"]
        raise RunError(f"{shown(out.folder)} has the answers to {before}; rename {folder} or move the old answers away")
    write_json(out.provenance, asked)
    for k in trained:
        parameters = {"run_id": paths.run_id, "fold": k, "predict": str(folder.resolve())}
        execute("04_infer", out.notebooks / f"04_infer-fold{k}.ipynb", parameters, console)
    probs = mean_probabilities([read_probabilities(out.fold(k).probs("test"), test["id"]) for k in trained])
    write_csv(out.submission(config.use_kfold), submission(sample, probs))
    return out.submission(config.use_kfold)

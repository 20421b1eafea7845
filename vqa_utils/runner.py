"""Runs the notebooks with papermill: each one executed and archived, and what is whole and unchanged reused."""

import argparse
import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import papermill
from nbclient.exceptions import DeadKernelError
from rich.console import Console

from vqa_utils.artifacts import hashes, provenance, read_json, read_probabilities, sha256, write_csv, write_json
from vqa_utils.config import DEMO_DATA, Config, from_dict, parse_settings, preset, to_dict
from vqa_utils.data import load_challenge, load_test
from vqa_utils.ensemble import mean_probabilities, submission
from vqa_utils.paths import NOTEBOOKS, RunPaths, runs_dir, shown
from vqa_utils.stages import RunError, Step
from vqa_utils.terminal import following

KAGGLE_INPUT = Path("/kaggle/input")


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
        if state != "missing":  # what it wrote for other settings or inputs must not be taken for new
            for path in step.outputs(self.paths.folder):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self._marker(step).unlink(missing_ok=True)
        archived = self.paths.notebooks / f"{step.name}.ipynb"
        train_log = self.paths.fold(step.fold).train_log if step.fold is not None else None
        execute(step.stage.name, archived, step.parameters(self.paths.run_id), self.console, train_log)
        absent = [path for path in step.outputs(self.paths.folder) if not path.exists()]
        if absent:
            raise RunError(f"{shown(archived)}: expected it to write {', '.join(map(shown, absent))}, found nothing there")
        write_json(self._marker(step), self._record(step))

    def _record(self, step: Step) -> dict[str, Any]:
        if not self._data_hash:
            self._data_hash = data_hash(self.config)
        run = self.paths.folder
        files = {"inputs": hashes(step.inputs(run), run), "outputs": hashes(step.outputs(run), run)}
        return {"config": self.config.hash, "data": self._data_hash, **files}

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


def settle_run(args: argparse.Namespace, new_id: str) -> tuple[RunPaths, Config]:
    """Which run a command is about: its paths and its settings.

    Args:
        args: run_all.py's.
        new_id: names a new run, together with its preset.

    Raises:
        RunError: the run is there and nothing says to go on with it, or it is not there and should be.
        ConfigError: settings that cannot be used.
    """
    changes = {key: value for key in ("data", "model", "limit") if (value := getattr(args, key)) is not None}
    changes |= parse_settings(args.set)
    if changes.get("data") not in (None, DEMO_DATA):
        changes["data"] = str(Path(changes["data"]).resolve())
    continues = args.resume or args.status or args.predict
    run_id = args.run_id or ("latest" if continues else f"{new_id}-{args.preset or 'demo'}")
    paths = RunPaths(run_id)
    if paths.config.exists():
        if not (continues or args.force or args.dry_run):
            raise RunError(f"{shown(paths.folder)} is there already: --resume goes on with it, --force runs all of it again")
        paths = RunPaths(paths.folder.resolve().name)  # what `latest` stands for
        base = from_dict(read_json(paths.config)) if args.preset is None else preset(args.preset)
        return paths, dataclasses.replace(base, **changes)
    if continues:
        raise RunError(f"{shown(paths.folder)}: expected a run, found none; start one without --resume, --status or --predict")
    return paths, preset(args.preset or "demo", **changes)


def with_data(config: Config) -> Config:
    """The settings with their data: where none is named, the one folder with a train.csv below Kaggle's input folder.

    Raises:
        RunError: there is none, or more than one.
    """
    if config.data:
        return config
    found = sorted(str(file.parent) for file in KAGGLE_INPUT.glob("**/train.csv"))
    if len(found) != 1:
        seen = f"found {', '.join(found)}" if found else "found none to take instead"
        raise RunError(f"--data: expected the folder with train.csv, test.csv, sample_submission.csv and the images, {seen}")
    return dataclasses.replace(config, data=found[0])


def start_run(paths: RunPaths, config: Config) -> None:
    """Check the data, write the run's settings and provenance, and point `runs/latest` to it."""
    challenge = load_challenge(config, check_images=True)
    write_json(paths.config, to_dict(config))
    inputs = hashes(challenge.files, challenge.folder)
    write_json(paths.provenance, {"started": time.strftime("%Y-%m-%d %H:%M:%S"), **provenance(), "inputs": inputs})
    latest = runs_dir() / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(paths.run_id, target_is_directory=True)


def predict(paths: RunPaths, config: Config, folder: Path, console: Console) -> Path:
    """Answer another test set with the run's adapters: 04_infer for each trained fold, and the mean of the folds.

    Returns:
        The submission's path, `runs/<run_id>/predict/<name of the folder>/submission_*.csv`.

    Raises:
        RunError: the run has no trained fold.
        DataError: the folder's test.csv, its sample_submission.csv or a picture has problems.
    """
    test, sample = load_test(folder)
    out = paths.predicting(str(folder))
    trained = [k for k in config.fold_numbers if paths.fold(k).meta.exists()]
    if not trained:
        raise RunError(f"{shown(paths.folder)}: expected a trained fold, found none; run notebook 03_train_fold first")
    for k in trained:
        parameters = {"run_id": paths.run_id, "fold": k, "predict": str(folder.resolve())}
        execute("04_infer", out.notebooks / f"04_infer-fold{k}.ipynb", parameters, console)
    probs = mean_probabilities([read_probabilities(out.fold(k).probs("test"), test["id"]) for k in trained])
    write_csv(out.submission(config.use_kfold), submission(sample, probs))
    return out.submission(config.use_kfold)


def data_hash(config: Config) -> str:
    """Changes with the CSVs, and with the name, size or time of any picture."""
    challenge = load_challenge(config)
    files = [challenge.folder / path for path in pd.concat([challenge.train["path"], challenge.test["path"]])]
    stats = [f"{file} {(stat := file.stat()).st_size} {stat.st_mtime_ns}" for file in files]
    return str(pd.util.hash_pandas_object(pd.Series([*map(sha256, challenge.files), *stats])).sum())

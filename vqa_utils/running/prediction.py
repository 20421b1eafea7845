"""Answers to another test set, by the adapters that a run has trained."""

from pathlib import Path

from rich.console import Console

from vqa_utils.artifacts.files import read_json, write_csv, write_json
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.config import Config
from vqa_utils.data.challenge import load_test
from vqa_utils.ensembling.combining import combined, submission
from vqa_utils.ensembling.members import has_settings
from vqa_utils.ensembling.temperature import read_temperatures, scaled, temperature_of
from vqa_utils.errors import RunError
from vqa_utils.running.execution import execute
from vqa_utils.running.terminal import follow, progress_lines


def predict(paths: RunPaths, config: Config, folder: Path, console: Console) -> Path:
    """Answer another test set with the run's adapters: 04_infer for each one trained, combined as 05_ensemble did.

    Returns:
        The submission's path, `runs/<run_id>/predict/<name of the folder>/submission_*.csv`.

    Raises:
        RunError: the run has no trained fold, or has answered another folder of the same name.
        DataError: the folder's test.csv, its sample_submission.csv or a picture has problems.
    """
    test, sample = load_test(folder)
    out = paths.predicting(str(folder))
    trained = [
        k
        for k in config.adapter_numbers
        if paths.fold(k).meta.exists() and has_settings(paths.fold(k), config)
    ]
    if not trained:
        raise RunError(
            f"{shown(paths.folder)}: expected a trained fold, found none; run notebook 03_train_fold first"
        )
    asked = {"folder": str(folder.resolve())}
    if out.provenance.exists() and read_json(out.provenance) != asked:
        before = read_json(out.provenance)["folder"]
        raise RunError(
            f"{shown(out.folder)} has the answers to {before}; rename {folder} or move the old answers away"
        )
    write_json(out.provenance, asked)
    if config.calibrate and not paths.members.exists():
        console.print(
            "probabilities stay as they are scored: 05_ensemble, which calibrates them, has not run",
            style="yellow",
        )
    for k in trained:
        parameters = {"run_id": paths.run_id, "fold": k, "predict": str(folder.resolve())}
        with (
            progress_lines(console) as progress,
            follow(progress, console, f"04_infer-fold{k}", None),
        ):
            execute("04_infer", out.notebooks / f"04_infer-fold{k}.ipynb", parameters)
    temperatures = read_temperatures(paths)
    members = [read_probabilities(out.fold(k).probs("test"), test["id"]) for k in trained]
    probs = combined(
        [
            scaled(member, temperature_of(temperatures, k))
            for k, member in zip(trained, members, strict=True)
        ],
        config.ensemble,
    )
    write_csv(out.submission(config.use_kfold), submission(sample, probs))
    return out.submission(config.use_kfold)

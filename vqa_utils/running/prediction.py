"""Answer another test set with a run's adapters."""

from pathlib import Path

import pandas as pd
from rich.console import Console

from vqa_utils.artifacts.files import ids_hash, read_json, sha256, write_csv, write_json
from vqa_utils.artifacts.paths import RunPaths, shown
from vqa_utils.artifacts.places import located, portable
from vqa_utils.artifacts.probabilities import read_probabilities
from vqa_utils.config import Config
from vqa_utils.data.challenge import TEST, load_test
from vqa_utils.data.pictures.images import image_hashes
from vqa_utils.data.text_lengths import measure_texts
from vqa_utils.ensembling.base_member import with_base
from vqa_utils.ensembling.combining import combine_members, submission
from vqa_utils.ensembling.members import Member, has_settings
from vqa_utils.ensembling.other_runs import has_other_settings
from vqa_utils.ensembling.second_look import members_with_look, uses_second_look
from vqa_utils.ensembling.temperature import read_temperatures
from vqa_utils.errors import RunError
from vqa_utils.planning.machine.check import check_longest_test
from vqa_utils.planning.machine.gpus import find_gpus
from vqa_utils.planning.source.check import source_of, tokenizer_of
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import PREDICTION, TRAINING, Step


def predict(paths: RunPaths, config: Config, folder: Path, console: Console) -> Path:
    """Answer another test set: 04_infer for each trained adapter, combined as 05_ensemble did.

    Returns:
        The submission, `runs/<run_id>/predict/<name of the folder>/submission_*.csv`.

    Raises:
        RunError: there is no such folder, the run has no trained fold, its ensemble is of other
            settings, or it has answered another folder of the same name.
        DataError: the folder's test.csv, its sample_submission.csv or a picture has problems.
        MachineError: its longest row does not fit the GPUs here.
    """
    folder = _existing(folder)
    numbers = _trained_adapters(paths, config)
    if has_other_settings(paths):
        raise RunError(
            f"{shown(paths.members)}: expected the verdicts of 05_ensemble under the run's settings, "
            "found those of other settings; run_all.py --resume makes them anew"
        )
    out = paths.predicting(str(folder))
    _check_claim(out, folder)
    test, sample = load_test(folder, out.images)
    _check_texts(test, config, console)
    write_json(out.provenance, {"folder": portable(str(folder))})  # the claim of `_check_claim`
    if config.calibrate and not paths.members.exists():
        console.print(
            "probabilities stay as they are scored: 05_ensemble, which calibrates them, "
            "has not run",
            style="yellow",
        )
    # The run's own data may be gone by now: answers depend on the test set alone
    test_hash = _hash_of_test(folder, test, out.images)
    runner = Runner(paths, config, console, reuse=True)
    runner.tell_changes([], [Step(TRAINING, number) for number in numbers])
    runner = runner.writing_to(out, lambda _: test_hash)
    runner.run([Step(PREDICTION, number, predict=str(folder)) for number in numbers])
    path = out.submission(config.use_kfold)
    write_csv(path, submission(sample, _combined(paths, config, out, numbers, test["id"])))
    return path


def _combined(
    paths: RunPaths, config: Config, out: RunPaths, numbers: list[int], ids: pd.Series
) -> pd.DataFrame:
    """Combine what these adapters have written to `out`, as 05_ensemble has combined the run's."""
    members = []  # in 05's order, refit last
    for number in numbers:
        probs = read_probabilities(out.fold(number).probs("test"), ids)
        members.append(Member(number, config.adapter_name(number), probs))
    if config.second_look and uses_second_look(paths):
        members = members_with_look(members, out)
    probs = combine_members(members, read_temperatures(paths), config.ensemble)
    return with_base(paths, config, out, probs)


def _existing(folder: Path) -> Path:
    """Return a folder's absolute path.

    Raises:
        RunError: there is no such folder.
    """
    try:
        found = folder.expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null byte
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"predict: expected a folder with test.csv and the images, found {reason}: {folder}"
        ) from error
    if not found.is_dir():
        raise RunError(f"predict: expected a folder with test.csv and the images, found {folder}")
    return found


def _trained_adapters(paths: RunPaths, config: Config) -> list[int]:
    """The numbers of the adapters of the run's settings.

    Raises:
        RunError: there is none.
    """
    trained = [number for number in config.adapter_numbers if paths.fold(number).meta.exists()]
    usable = [number for number in trained if has_settings(paths.fold(number), config)]
    if not usable:
        raise RunError(
            f"{shown(paths.folder)}: expected a trained fold, found none; "
            "run notebook 03_train_fold first"
        )
    return usable


def _check_claim(out: RunPaths, folder: Path) -> None:
    """Check that `out` has no answers to another test set in a folder of the same name.

    Raises:
        RunError: `out` has the answers to another folder.
    """
    if not out.provenance.exists():
        return
    before = located(read_json(out.provenance)["folder"])
    if before != str(folder):
        raise RunError(
            f"{shown(out.folder)} has the answers to {before}; "
            f"rename {folder} or move the old answers away"
        )


def _check_texts(test: pd.DataFrame, config: Config, console: Console) -> None:
    """Name rows with much longer texts than the others', and refuse what no GPU here can hold.

    Raises:
        MachineError: the longest row does not fit.
    """
    lengths = measure_texts({TEST: test}, tokenizer_of(source_of(config)), config.prompt)
    if lengths is None:
        return
    if lengths.outliers:
        console.print(lengths.describe_outliers(), style="yellow", markup=False)
    longest = lengths.outliers[0][0] if lengths.outliers else f"{TEST}, its longest row"
    check_longest_test(config, find_gpus(), lengths.longest_test, longest)


def _hash_of_test(folder: Path, test: pd.DataFrame, images: Path) -> str:
    """Name the contents of test.csv and of its pictures, whose hashes are in `images`."""
    pictures = image_hashes(folder, test["path"], images)
    return ids_hash([sha256(folder / "test.csv"), *pictures])

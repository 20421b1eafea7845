"""Write what `kaggle datasets create` and `kaggle kernels push` take.

    DIR/dataset/    the code, wheels for an installation without network, dataset-metadata.json
    DIR/kernel/     the launcher notebook, kernel-metadata.json
    DIR/README.md   the commands

Fields: docs/kernels_metadata.md and docs/datasets_metadata.md of the kaggle package.
"""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import StrictUndefined, Template

from vqa_utils.artifacts.files import read_json, write_atomically, write_json, write_text
from vqa_utils.config import DEMO_MODEL_NAME, Config
from vqa_utils.errors import RunError
from vqa_utils.exporting._launcher_notebook import launcher_notebook
from vqa_utils.exporting.code import copy_code
from vqa_utils.exporting.wheels import download_wheels
from vqa_utils.planning.machine.check import check_targets
from vqa_utils.planning.machine.gpus import T4
from vqa_utils.planning.plan import memory_plan

TWO_T4 = "NvidiaTeslaT4"  # two of them (Kaggle/kaggle-cli#1198); there is no machine with one
HOURS = 11.5  # of the 12 that a session has
NOTEBOOK = "launcher.ipynb"
PAGE = Path(__file__).with_name("kaggle.md.jinja")
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
SLUG_LENGTHS = range(6, 51)  # of a dataset, by the kaggle package
MODEL_PARTS = 5  # owner/model/framework/variation/version
ACCOUNT = Path("~/.kaggle/kaggle.json")  # where the kaggle package keeps the user's name


@dataclass(frozen=True)
class KaggleExport:
    """What is exported."""

    user: str
    """On Kaggle; "" takes the name that the kaggle package is set up with."""
    name: str
    """Of the dataset and the notebook: small letters, digits and hyphens."""
    competition: str = ""
    """Its name in Kaggle's address."""
    model: str = ""
    """A model on Kaggle: owner/model/framework/variation/version."""
    datasets: tuple[str, ...] = ()
    """More datasets to attach: owner/name."""
    arguments: tuple[str, ...] = ()
    """Of run_all.py, without its preset."""
    python: str = ""
    """Of the image; with it, wheels are written, and the internet is off."""
    goes_on: bool = False
    """The notebook's own output is attached, so that it goes on with the run in it."""


def export_kaggle(folder: Path, config: Config, export: KaggleExport) -> None:
    """Write the dataset, the notebook and their page.

    Args:
        folder: new, or an earlier export's.
        config: the settings of the run.
        export: what is exported.

    Raises:
        MachineError: the settings do not fit two T4.
        RunError: a name cannot be one, or the folder has other files.
    """
    _refuse_problems(folder, config, export)
    if config.model != DEMO_MODEL_NAME:
        memory_plan(config, [T4, T4])  # raises if it does not fit
        check_targets(config)
    user = export.user or kaggle_user()
    for part in ("dataset", "kernel"):
        shutil.rmtree(folder / part, ignore_errors=True)
    dataset, kernel = folder / "dataset", folder / "kernel"
    copy_code(dataset)
    if export.python:
        download_wheels(dataset / "wheels", export.python)
    write_json(dataset / "dataset-metadata.json", dataset_metadata(user, export))
    write_json(kernel / "kernel-metadata.json", kernel_metadata(user, config, export))
    notebook = launcher_notebook(config.preset, export.arguments, HOURS, _t4s(config), config.lang)
    write_atomically(kernel / NOTEBOOK, lambda file: nbformat.write(notebook, file))
    page = Template(PAGE.read_text(), undefined=StrictUndefined, trim_blocks=True)
    write_text(
        folder / "README.md",
        page.render(folder=folder, user=user, export=export, config=config),
    )


def dataset_metadata(user: str, export: KaggleExport) -> dict[str, Any]:
    """Return the contents of dataset-metadata.json."""
    return {
        "title": f"{export.name} code",
        "id": f"{user}/{export.name}-code",
        "licenses": [{"name": "other"}],  # MIT, which Kaggle has not in its list
    }


def kernel_metadata(user: str, config: Config, export: KaggleExport) -> dict[str, Any]:
    """Return the contents of kernel-metadata.json."""
    needs_gpus = _t4s(config) > 0
    reference = f"{user}/{export.name}"
    return {
        "id": reference,
        "title": export.name,
        "code_file": NOTEBOOK,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": needs_gpus,
        "machine_shape": TWO_T4 if needs_gpus else "",
        "enable_internet": not export.python,
        "dataset_sources": [f"{user}/{export.name}-code", *export.datasets],
        "competition_sources": [export.competition] if export.competition else [],
        "kernel_sources": [reference] if export.goes_on else [],
        "model_sources": [export.model] if export.model else [],
    }


def kaggle_user() -> str:
    """Return the user's name on Kaggle, as the kaggle package knows it.

    Raises:
        RunError: it does not.
    """
    name = os.environ.get("KAGGLE_USERNAME", "")
    account = ACCOUNT.expanduser()
    if not name and account.is_file():
        name = read_json(account).get("username", "")
    if not name:
        raise RunError(f"--user: expected your name on Kaggle, found none in {ACCOUNT} either")
    return str(name)


def _t4s(config: Config) -> int:
    return 0 if config.model == DEMO_MODEL_NAME else 2


def _refuse_problems(folder: Path, config: Config, export: KaggleExport) -> None:
    """Refuse names that Kaggle refuses, and a folder with other files.

    Raises:
        RunError: with all problems.
    """
    problems = []
    length = len(f"{export.name}-code")
    if not SLUG.fullmatch(export.name) or length not in SLUG_LENGTHS:
        problems.append(
            "--name: expected small letters, digits and single hyphens, up to "
            f"{SLUG_LENGTHS.stop - 1 - len('-code')} of them, found {export.name!r}"
        )
    if export.model and export.model.count("/") != MODEL_PARTS - 1:
        problems.append(
            "--kaggle-model: expected owner/model/framework/variation/version, as on the model's "
            f"page on Kaggle, found {export.model}"
        )
    problems += _slashes("--dataset", export.datasets, 1)
    problems += _slashes("--competition", [export.competition], 0)
    needs_model = config.model != DEMO_MODEL_NAME and not export.model and not export.datasets
    if export.python and needs_model:
        problems.append(
            f"--offline: expected --kaggle-model or --dataset with {config.model}, found neither"
        )
    others = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if others - {"dataset", "kernel", "README.md"}:
        problems.append(f"{folder}: expected a new folder, found one with other files")
    if problems:
        raise RunError("\n".join(problems))


def _slashes(option: str, references: Sequence[str], count: int) -> list[str]:
    """Describe references with another number of slashes."""
    form = "owner/name" if count else "the name in the competition's address"
    return [
        f"{option}: expected {form}, found {reference}"
        for reference in references
        if reference.count("/") != count
    ]

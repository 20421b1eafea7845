"""Each notebook through papermill's own command line, without run_all.py."""

import os
import subprocess
import sys

import nbformat
import pytest
from click.testing import CliRunner
from papermill import cli
from stray_outputs import stray_outputs

from vqa_utils.artifacts.files import settings_to_json, write_json
from vqa_utils.artifacts.paths import NOTEBOOKS, ROOT, RunPaths
from vqa_utils.running.notebooks.kernels import import_code

SERIES = sorted(NOTEBOOKS.glob("*.ipynb"))
PARAMETERS = {
    "03_train_fold": {"run_id", "fold"},
    "04_infer": {"run_id", "fold", "predict"},
    "05_ensemble": {"run_id", "members"},
}
FOLDERS = pytest.mark.parametrize("folder", [ROOT, NOTEBOOKS], ids=["repository", "notebooks"])


def test_the_series_is_there():
    assert len(SERIES) == 6


@pytest.mark.parametrize("notebook", SERIES, ids=lambda file: file.stem)
def test_the_help_names_type_default_and_meaning_of_each_parameter(notebook):
    shown = CliRunner().invoke(cli.papermill, ["--help-notebook", str(notebook)])
    assert shown.exit_code == 0
    assert "Unknown" not in shown.output, "a type"
    _, _, after = shown.output.partition(f"{notebook.name}':\n")
    words = after.split()
    assert {word[:-1] for word in words if word.endswith(":")} == PARAMETERS.get(
        notebook.stem, {"run_id"}
    )
    assert 'run_id: str (default "interactive")' in after
    assert after.count("(default ") == len(PARAMETERS.get(notebook.stem, {"run_id"}))
    if "fold" in PARAMETERS.get(notebook.stem, ()):
        assert "fold: int (default 0)" in after


@FOLDERS
@pytest.mark.parametrize("notebook", SERIES, ids=lambda file: file.stem)
def test_the_first_cell_finds_the_package_by_itself(notebook, folder):
    """A kernel has the working folder on its path, as a rule; with -I, Python has not."""
    lines = import_code(notebook).splitlines()
    way = [line for line in lines if line == "import sys" or line.startswith("sys.path")]
    code = "\n".join([*way, "import vqa_utils", "print(vqa_utils.__path__[0])"])
    found = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert (folder / found.stdout.strip()).resolve() == ROOT / "vqa_utils"


@pytest.mark.slow
@FOLDERS
def test_exploration_and_folds_run_in_either_folder(folder, config, tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    paths = RunPaths("by-papermill")
    write_json(paths.config, settings_to_json(config))
    for name in ("01_eda", "02_folds"):
        executed = tmp_path / f"{name}.ipynb"
        source = os.path.relpath(NOTEBOOKS / f"{name}.ipynb", folder)
        command = [sys.executable, "-m", "papermill", source, str(executed), "-p", "run_id"]
        ran = subprocess.run(
            [*command, paths.run_id], cwd=folder, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        notebook = nbformat.read(executed, 4)
        assert notebook.metadata.papermill.parameters == {"run_id": paths.run_id}
        assert stray_outputs(notebook) == []
    assert paths.images.exists() and paths.folds.exists()

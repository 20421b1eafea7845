"""One notebook has the whole series, and runs alone."""

import base64
import io
import subprocess
import sys
import tarfile

import nbformat
import pandas as pd
import pytest

from vqa_utils.artifacts.paths import NOTEBOOKS, ROOT, RUNS_VARIABLE
from vqa_utils.errors import RunError
from vqa_utils.exporting.by_hand import start_run_by_hand
from vqa_utils.exporting.one_notebook import export_notebook, one_notebook
from vqa_utils.model.notebook_memory import forget
from vqa_utils.presets import preset

PACKAGE_CELL = 4


@pytest.fixture(scope="module")
def safe():
    return one_notebook(preset("safe", refit=True))


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def test_every_cell_of_the_series_is_there_in_its_order(safe):
    """Each fold and the refit has the code of 03 and 04; the words stand once."""
    text = "\n".join(sources(safe, "code"))
    position = 0
    for name in ("01_eda", "02_folds", "03_train_fold", "04_infer", "05_ensemble", "06_analysis"):
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        own = [cell for cell in notebook.cells if "parameters" not in cell.metadata.get("tags", [])]
        times = 4 if name in ("03_train_fold", "04_infer") else 1
        for source in [cell.source for cell in own if cell.cell_type == "code"][1:]:
            assert text.count(source) >= times, source
            position = max(position, text.index(source))
        first_words = own[0].source.splitlines()[0]
        assert sum(words.startswith(first_words) for words in sources(safe, "markdown")) == 1
    assert position == text.index(source), "06 is the last"


def test_nothing_leads_out_of_it(safe):
    everything = "\n".join([*sources(safe, "code"), *sources(safe, "markdown")])
    assert ".ipynb)" not in everything and "sys.path[" not in everything
    requirements = (ROOT / "requirements.txt").read_text()
    for line in requirements.splitlines():
        package = line.partition("#")[0].strip()
        assert not package or f'"{package}"' in everything


@pytest.mark.slow
def test_the_package_inside_is_nobodys_and_has_the_demos_model_only_for_the_demo(safe):
    def members(notebook):
        cell = notebook.cells[PACKAGE_CELL].source
        packed = base64.b64decode(cell.split('PACKAGE = "')[1].split('"')[0])
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            return {member.name: member for member in archive.getmembers()}

    of_safe = members(safe)
    assert "vqa_utils/config.py" in of_safe and "vqa_utils/ops/norms.cu" in of_safe
    assert not [name for name in of_safe if name.endswith(".safetensors")]
    assert {(member.uname, member.uid, member.mtime) for member in of_safe.values()} == {("", 0, 0)}
    assert [name for name in members(one_notebook(preset("demo"))) if name.endswith(".safetensors")]
    assert len(nbformat.writes(safe)) < 1e6, "a notebook of megabytes opens slowly"


def test_settings_are_those_of_the_command(tmp_path):
    notebook = one_notebook(preset("safe", image_side=320, n_folds=2, data="/data"))
    (settings,) = (source for source in sources(notebook, "code") if "PRESET = " in source)
    found = {}
    exec(settings.partition("\n\n")[0], found)
    assert (found["PRESET"], found["DATA"], found["FOLDS"]) == ("safe", "/data", [0, 1])
    assert found["CHANGES"] == {"image_side": 320, "n_folds": 2}
    with pytest.raises(RunError, match=r"ends with \.ipynb.*all\.py"):
        export_notebook(tmp_path / "all.py", preset("safe"))


def test_settings_that_need_other_sections_are_refused(korean_folder):
    with pytest.raises(RunError, match=r"\[0, 1, 2\].*\[0, 1\]"):
        start_run_by_hand("demo", str(korean_folder), {"n_folds": 2}, [0, 1, 2])


def test_what_a_fold_leaves_is_let_go():
    names = {"pd": pd, "kept": 1, "model": object(), "_hidden": 2}
    forget(names, ["pd", "kept"])
    assert set(names) == {"pd", "kept", "_hidden"}


@pytest.mark.slow
def test_it_runs_alone_in_an_empty_folder(korean_folder, tmp_path, monkeypatch):
    monkeypatch.delenv(RUNS_VARIABLE, raising=False)
    config = preset("demo", data=str(korean_folder), n_folds=2, epochs=1)
    export_notebook(tmp_path / "all.ipynb", config)
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "all.ipynb", "all.ipynb"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    executed = (tmp_path / "all.ipynb").read_text()
    assert str(ROOT) not in executed, "it has its own package"
    run = tmp_path / "runs" / "one-notebook"
    asked = pd.read_csv(korean_folder / "test.csv")
    answered = pd.read_csv(run / "submission_ensemble.csv")
    assert list(answered["id"]) == list(asked["id"])
    assert (run / "fold1" / "probs_oof.csv").is_file() and (run / "report/index.html").is_file()

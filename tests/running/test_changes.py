"""A run that is gone on with after the code, a library or a notebook has changed."""

import json
import re
import shutil

import pytest

import run_all
from vqa_utils.artifacts.files import read_json, write_json
from vqa_utils.artifacts.paths import NOTEBOOKS, RunPaths
from vqa_utils.artifacts.run import open_run
from vqa_utils.errors import RunError
from vqa_utils.running.archive import origin
from vqa_utils.running.notebooks import execution

pytestmark = pytest.mark.slow

TRAININGS = ["03_train_fold-fold0", "03_train_fold-fold1"]
FROM_TRAINING = [*TRAININGS, "04_infer-fold0", "04_infer-fold1", "05_ensemble", "06_analysis"]


@pytest.fixture
def command(stand_in, console, monkeypatch, korean_folder):
    """Runs `run_all.py` on the run `r` of two folds; returns what it printed and executed."""

    def run(*words):
        stand_in.executed.clear()
        monkeypatch.setattr("sys.argv", ["run_all.py", *words])
        before = len(console.file.getvalue())
        run_all.run(run_all.parse_arguments(), console)
        executed = sorted(name.removeprefix("r ") for name in stand_in.executed)
        return console.file.getvalue()[before:], executed

    run("--data", str(korean_folder), "--set", "n_folds=2", "--run-id", "r")
    return run


@pytest.fixture
def change(monkeypatch):
    """Gives a file of the package other contents."""
    source_of = origin._source_of

    def change(name):
        def changed(file, written):
            source = source_of(file, written)
            return source._replace(hash="other") if file.name == name else source

        monkeypatch.setattr(origin, "_source_of", changed)

    return change


def test_changed_code_is_named_with_the_command_that_runs_notebooks_again(command, change):
    change("prompts.py")
    printed, executed = command("--resume")
    assert executed == [], "by itself it runs nothing again"
    line = "vqa_utils/prompts.py: since 03_train_fold (fold 0, 1), 04_infer (fold 0, 1)\n"
    assert line in printed
    again = re.search(r"python run_all.py (.*) runs 03_train_fold", printed)[1]
    assert again == "--resume --run-id r --force --from 03_train_fold"
    assert "3.0 minutes" in printed, "six notebooks of half a minute"
    for words in (["status"], ["--resume", "--dry-run"], ["--resume", "--only", "06_analysis"]):
        assert line in command(*words)[0], words
    assert command(*again.split())[1] == FROM_TRAINING
    printed, executed = command("--resume", "--strict")
    assert executed == [] and "since" not in printed


def test_strict_refuses_before_anything_is_written(command, change):
    before = read_json(RunPaths("r").provenance)
    change("encoder.py")
    for words in (["--resume"], ["--resume", "--dry-run"], ["--resume", "--only", "05_ensemble"]):
        with pytest.raises(
            RunError, match=r"--strict: .*\n.*model/encoder.py: since (.*\n)*.*--from"
        ):
            command(*words, "--strict")
    assert read_json(RunPaths("r").provenance) == before
    assert command("--resume", "--strict", "--force")[1][-1] == "06_analysis", "nothing is reused"


def test_other_libraries_are_named_with_their_versions(command, monkeypatch):
    version = origin.importlib.metadata.version
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: "99.0" if name == "peft" else version(name)
    )
    printed, executed = command("--resume")
    assert executed == [] and f"peft {version('peft')} (now 99.0): since 03_train_fold" in printed


def test_other_code_in_the_ensemble_costs_no_training(command, change):
    change("combining.py")
    printed, _ = command("--resume")
    assert "vqa_utils/ensembling/combining.py: since 05_ensemble, 06_analysis" in printed
    assert "--force --from 05_ensemble" in printed


def test_a_prediction_says_what_has_changed_since_the_training(command, change, korean_folder):
    change("prompts.py")
    printed, executed = command("predict", str(korean_folder), "--run-id", "r")
    assert "vqa_utils/prompts.py: since 03_train_fold (fold 0, 1)\n" in printed
    assert executed == ["04_infer-fold0", "04_infer-fold1"]


def test_a_run_of_an_earlier_version_is_gone_on_with(command):
    for marker in RunPaths("r").stages.iterdir():
        written = read_json(marker)
        write_json(
            marker, {name: written[name] for name in ("config", "data", "inputs", "outputs")}
        )
    printed, executed = command("--resume", "--strict")
    assert executed == [] and "since" not in printed


@pytest.fixture
def edit(tmp_path, monkeypatch):
    """Changes a notebook, in a copy of the series."""
    folder = shutil.copytree(NOTEBOOKS, tmp_path / "notebooks")
    monkeypatch.setattr(execution, "NOTEBOOKS", folder)

    def edit(name, kind, line):
        path = folder / f"{name}.ipynb"
        notebook = json.loads(path.read_text())
        cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == kind)
        cell["source"].append(f"\n{line}")
        path.write_text(json.dumps(notebook))

    return edit


def test_a_notebook_with_other_cells_runs_again(command, edit):
    edit("05_ensemble", "markdown", "Words.")
    edit("05_ensemble", "code", "# a comment")
    assert command("--resume")[1] == []
    edit("05_ensemble", "code", "print(1)")
    printed, executed = command("--resume", "--strict")
    assert executed == ["05_ensemble"], "the report has the same inputs"
    assert "runs again: other cells in 05_ensemble.ipynb" in " ".join(printed.split())
    assert command("--resume")[1] == []
    edit("03_train_fold", "code", "print(1)")
    with pytest.raises(RunError, match="03_train_fold-fold0"):
        command("--resume", "--from", "04_infer")


@pytest.fixture
def half_trained(command):
    """The folder of fold 0's checkpoints, of a training that was stopped."""
    paths = RunPaths("r")
    marker = paths.stages / "03_train_fold-fold0.json"
    checkpoint = paths.fold(0).checkpoints / "a1b2" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    settings = open_run("r")[1].training_hash
    write_json(paths.fold(0).checkpoints / f"origin-{settings}.json", read_json(marker))
    marker.unlink()
    return paths.fold(0).checkpoints


def test_a_training_that_goes_on_has_the_code_of_its_beginning(command, change, half_trained):
    change("_loss.py")
    with pytest.raises(RunError, match=r"training/_loss.py: since 03_train_fold \(fold 0, 1\)"):
        command("--resume", "--strict")
    _, executed = command("--resume")
    assert executed == ["03_train_fold-fold0"]
    assert not half_trained.exists()
    printed, _ = command("--resume")
    assert "training/_loss.py: since 03_train_fold (fold 0, 1)" in printed, "half of it is old"


def test_a_training_under_other_settings_has_the_code_of_now(command, change, half_trained):
    """It goes on from no checkpoint, whatever lies there."""
    change("_loss.py")
    (RunPaths("r").stages / "03_train_fold-fold1.json").unlink()
    _, executed = command("--resume", "--set", "learning_rate=1e-4")
    assert set(TRAININGS) <= set(executed)
    printed, _ = command("--resume", "--strict")
    assert "_loss.py" not in printed


def test_a_killed_notebook_does_not_stand_in_the_way_of_changed_code(command, change):
    """papermill writes no duration until the end."""
    change("_loss.py")
    archived = RunPaths("r").notebooks / "04_infer-fold1.ipynb"
    notebook = read_json(archived)
    notebook["metadata"]["papermill"]["duration"] = None
    write_json(archived, notebook)
    (RunPaths("r").stages / "04_infer-fold1.json").unlink()
    printed, executed = command("--resume")
    assert "training/_loss.py" in printed and "04_infer-fold1" in executed


def test_a_training_of_other_cells_begins_anew(command, edit, half_trained):
    (RunPaths("r").stages / "03_train_fold-fold1.json").unlink()
    edit("03_train_fold", "code", "print(1)")
    printed, executed = command("--resume")
    assert executed == TRAININGS and not (half_trained / "a1b2").exists()
    assert "03_train_fold.ipynb, so that it begins anew: since 03_train_fold (fold 0)" in printed
    kept = RunPaths("r").folder.glob("replaced/*/fold0/checkpoints/a1b2/checkpoint-4")
    assert len(list(kept)) == 1, "nothing is lost"


def test_force_goes_on_from_no_checkpoint(command, half_trained):
    command("--resume", "--force", "--only", "03_train_fold", "--folds", "1")
    assert (half_trained / "a1b2").exists()
    command("--resume", "--force", "--only", "03_train_fold", "--folds", "0")
    kept = RunPaths("r").folder.glob("replaced/*/fold0/checkpoints/a1b2/checkpoint-4")
    assert len(list(kept)) == 1

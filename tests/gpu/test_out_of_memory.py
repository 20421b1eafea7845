"""Memory that runs out in the middle of a training: real notebooks, in which a step raises torch's own error."""

import html
import os
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from korean_challenge import write_korean_challenge

from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.fold_settings import read_rungs
from vqa_utils.artifacts.paths import ROOT, RunPaths
from vqa_utils.artifacts.stop import STEP
from vqa_utils.config import from_dict

# Every kernel runs this first. From the second epoch on, batches of more than two rows are too many;
# other notebooks than 03 do without the seconds of its imports
STARTUP = f"""
import os

def patch():
    import sys
    sys.path.insert(0, {str(ROOT)!r})
    import torch
    from vqa_utils.training import _callbacks as callbacks

    def on_step_begin(self, args, state, control, real=callbacks.TrainLog.on_step_begin, **kwargs):
        with open({{seen!r}}, "a") as file:
            print(args.per_device_train_batch_size, state.global_step, file=file)
        if args.per_device_train_batch_size > 2 and state.global_step >= 2:
            raise torch.OutOfMemoryError("CUDA out of memory. GPU 0 has a total capacity of 14.74 GiB of which 2 MiB is free.")
        real(self, args, state, control, **kwargs)

    callbacks.TrainLog.on_step_begin = on_step_begin

if os.environ[{STEP!r}].startswith("03"):
    patch()
"""


@pytest.fixture
def run_all(tmp_path, monkeypatch):
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-memory.py").write_text(STARTUP.format(seen=str(tmp_path / "seen")))
    folder = write_korean_challenge(tmp_path / "data", train=12, test=4)
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    settings = [
        "n_folds=2",
        "epochs=2",
        "micro_batch=4",
        "baselines=false",
        "use_gradient_checkpointing=true",
    ]
    options = [
        "--data",
        str(folder),
        "--run-id",
        "small",
        *(part for name in settings for part in ("--set", name)),
    ]

    def run(*more):
        command = [sys.executable, "run_all.py", *options, *more]
        return subprocess.run(
            command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.slow
def test_the_training_goes_on_from_its_checkpoint_with_half_the_batch(run_all, tmp_path):
    found = run_all("--folds", "0")
    assert found.returncode == 0, found.stdout + found.stderr
    paths = RunPaths("small")
    (rung,) = read_rungs(paths.fold(0))
    assert rung.after == {"micro_batch": 2, "accumulation": 2}
    own = from_dict(read_json(paths.fold(0).config)["fold"])
    trained_with = from_dict(read_json(paths.fold(0).adapter_config))
    assert own == trained_with and own.micro_batch == 2
    steps = (tmp_path / "seen").read_text().splitlines()
    assert steps == ["4 0", "4 1", "4 2", "2 2", "2 3"]  # the first epoch is not repeated
    assert pd.read_csv(paths.fold(0).train_log)["step"].tolist() == [1, 2, 3, 4]
    failed = nbformat.read(paths.notebooks / "03_train_fold-fold0-out-of-memory1.ipynb", 4)
    assert "OutOfMemoryError" in str([cell.get("outputs") for cell in failed.cells])
    assert html.escape(rung.name) in paths.page.read_text()
    assert paths.submission(True).exists()
    again = run_all("--folds", "0", "--resume")
    assert again.returncode == 0 and again.stdout.count("reused") == 6, (
        f"a rung changes no step's state: {again.stdout}"
    )

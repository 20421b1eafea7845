"""What looks at data, plans and results starts without torch: in seconds, and on a machine that has none."""

import importlib.metadata
import subprocess
import sys

import jupytext
import pytest
from korean_challenge import write_korean_challenge
from torch_libraries import TORCH

import run_all
from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import NOTEBOOKS, ROOT, RunPaths
from vqa_utils.config import to_dict
from vqa_utils.presets import preset

REPORT = f"import sys; print('heavy:', sorted({TORCH} & set(sys.modules)))"
COMMAND = """
import runpy, sys
try:
    runpy.run_path("run_all.py", run_name="__main__")
finally:
    {report}
"""

HELP = """
import contextlib, sys, run_all
for command in {commands}:
    sys.argv = ["run_all.py", *command, "--help"]
    with contextlib.suppress(SystemExit):
        run_all.main()
print([name for name in ("numpy", "pandas", "papermill", "rich", "yaml") if name in sys.modules])
"""


def heavy_modules(code, folder, *arguments):
    """What a fresh process that runs some code has imported of `TORCH`, as the last line of its output."""
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout.splitlines()[-1]


@pytest.mark.parametrize("stem", ["01_eda", "02_folds", "05_ensemble", "06_analysis"])
@pytest.mark.slow
def test_the_imports_of_a_notebook_that_does_not_train(stem):
    imports = next(
        cell.source
        for cell in jupytext.read(NOTEBOOKS / f"{stem}.py").cells
        if cell.cell_type == "code"
    )
    assert "from vqa_utils" in imports
    assert heavy_modules(f"{imports}\n{REPORT}", NOTEBOOKS) == "heavy: []"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plan", "--preset", "safe", "--t4", "2"],
        ["status", "--run-id", "small"],
        ["open", "--run-id", "small"],
    ],
)
@pytest.mark.slow
def test_a_command_that_does_not_train(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    write_json(
        RunPaths("small").config,
        to_dict(preset("demo", data=str(write_korean_challenge(tmp_path / "data")))),
    )
    assert heavy_modules(COMMAND.format(report=REPORT), ROOT, *arguments) == "heavy: []"


@pytest.mark.parametrize("arguments", [["plan", "--preset", "safe", "--t4", "2"], ["status"]])
@pytest.mark.slow
def test_a_command_that_looks_starts_in_a_second(arguments, tmp_path, monkeypatch):
    """JupyterLab brings rfc3987-syntax, whose parser (lark) jsonschema builds as it is imported."""
    importlib.metadata.version("rfc3987-syntax")  # in tests/requirements.txt, through JupyterLab
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path))
    challenge = write_korean_challenge(tmp_path / "data")
    write_json(RunPaths("small").config, to_dict(preset("demo", data=str(challenge))))
    slow = {"lark", "scipy.stats", "sklearn", *TORCH}
    report = f"print(sorted({slow} & set(sys.modules)), 'jsonschema' in sys.modules)"
    assert heavy_modules(COMMAND.format(report=report), ROOT, *arguments) == "[] True"


def test_the_help_needs_no_library():
    commands = [[], *([name] for name in run_all.COMMANDS)]
    assert heavy_modules(HELP.format(commands=commands), ROOT) == "[]"


@pytest.mark.parametrize(
    ("own", "expected"), [(None, "expandable_segments:True"), ("backend:native", "backend:native")]
)
def test_the_allocator_is_set_up_before_torch_unless_the_user_has(own, expected, monkeypatch):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.delenv(name, raising=False)
        if own:
            monkeypatch.setenv(name, own)
    code = f"import vqa_utils, os, sys; print({{os.environ[n] for n in {names}}}, 'torch' in sys.modules)"
    assert heavy_modules(code, ROOT) == f"{{{expected!r}}} False"

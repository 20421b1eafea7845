"""What is exported is what the kaggle package takes."""

import contextlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from kaggle.api.kaggle_api_extended import KaggleApi
from requests.exceptions import HTTPError

import run_all
from vqa_utils.artifacts.files import read_json
from vqa_utils.artifacts.paths import ROOT
from vqa_utils.errors import RunError, VqaError
from vqa_utils.exporting import kaggle, wheels
from vqa_utils.exporting.code import code_files

MODEL = "qwen-lm/qwen-3-vl/transformers/30b-a3b-instruct/1"


@pytest.fixture
def export(tmp_path, monkeypatch, console):
    """Runs `run_all.py export-kaggle` into the folder `out`, which is returned."""
    monkeypatch.setenv("KAGGLE_USERNAME", "me")

    def run(*words):
        monkeypatch.setattr(
            "sys.argv", ["run_all.py", "export-kaggle", str(tmp_path / "out"), *words]
        )
        run_all.run(run_all.parse_arguments(), console)
        return tmp_path / "out"

    return run


@pytest.fixture
def api(tmp_path, monkeypatch):
    """The kaggle package without its network; `sent` has what it would send."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # it leaves a folder there
    api = KaggleApi()
    api.config_values = {"username": "me"}
    api.sent = []

    def keep(request):
        api.sent.append(request)
        return SimpleNamespace(error="", url="")

    client = SimpleNamespace(
        kernels=SimpleNamespace(kernels_api_client=SimpleNamespace(save_kernel=keep)),
        datasets=SimpleNamespace(dataset_api_client=SimpleNamespace(create_dataset=keep)),
    )
    monkeypatch.setattr(api, "build_kaggle_client", lambda: contextlib.nullcontext(client))

    def is_new(reference):
        raise HTTPError(response=SimpleNamespace(status_code=404))

    monkeypatch.setattr(api, "dataset_status", is_new)
    monkeypatch.setattr(api, "upload_files", lambda *arguments, **named: None)
    monkeypatch.setattr(api, "with_retry", lambda call: call)
    return api


def test_the_kaggle_package_takes_the_notebook(export, api, capsys):
    out = export("--preset", "safe", "--competition", "ssafy-vqa", "--kaggle-model", MODEL)
    api.kernels_push(str(out / "kernel"))
    (request,) = api.sent
    assert capsys.readouterr().out == "", "it warns of titles and machines that it does not know"
    assert request.machine_shape == "NvidiaTeslaT4" and request.enable_gpu
    assert request.slug == "me/two-gpu-vqa" and request.is_private and request.enable_internet
    assert request.competition_data_sources == ["ssafy-vqa"]
    assert request.dataset_data_sources == ["me/two-gpu-vqa-code"]
    assert request.model_data_sources == [MODEL]
    assert request.kernel_data_sources == []


def test_the_kaggle_package_takes_the_dataset(export, api):
    out = export("--preset", "safe", "--name", "mine")
    api.dataset_create_new(str(out / "dataset"), dir_mode="zip", quiet=True)
    (request,) = api.sent
    assert (request.owner_slug, request.slug, request.is_private) == ("me", "mine-code", True)


def test_an_export_that_goes_on_attaches_its_own_output(export, api):
    api.kernels_push(str(export("--preset", "safe", "--go-on") / "kernel"))
    assert api.sent[0].kernel_data_sources == ["me/two-gpu-vqa"]


def test_the_demo_needs_no_gpu(export, api):
    api.kernels_push(str(export() / "kernel"))
    assert not api.sent[0].enable_gpu and not api.sent[0].machine_shape


def test_the_notebook_has_the_changes_of_the_preset(export):
    out = export("--preset", "safe", "--set", "image_side=320", "--limit", "40", "--refit")
    settings = read_json(out / "kernel" / "launcher.ipynb")["cells"][1]["source"]
    found = {}
    exec("".join(settings), found)
    assert found["PRESET"] == "safe" and found["T4"] == 2 and found["HOURS"] == 11.5
    assert found["ARGUMENTS"] == ["--set", "image_side=320", "--limit", "40", "--refit"]


def test_the_notebook_and_its_run_speak_the_language_that_is_asked_for(export):
    cells = read_json(export("--preset", "safe", "--lang", "ko") / "kernel" / "launcher.ipynb")[
        "cells"
    ]
    assert "실행합니다" in "".join(cells[0]["source"])
    assert '["--lang", "ko"]' in "".join(cells[1]["source"]).replace("'", '"')


def test_the_code_is_what_a_run_needs(export):
    """The copy answers by itself, and no tracked file of the package is missing."""
    dataset = export("--preset", "safe") / "dataset"
    tracked = subprocess.run(
        ["git", "ls-files", "vqa_utils", "notebooks", "run_all.py", "requirements.txt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    of_other_machines = (".toml", ".sh", ".yaml")
    needed = {name for name in tracked if not name.endswith(of_other_machines)}
    assert needed <= set(map(str, code_files()))
    command = [sys.executable, "run_all.py", "plan", "--preset", "safe", "--t4", "2"]
    found = subprocess.run(command, cwd=dataset, capture_output=True, text=True, check=True)
    assert "safe fits" in found.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--name", "A b"], "--name: .* 'A b'"),
        (["--name", "a" * 46], "up to 45"),
        (["--dataset", "x"], "--dataset: .*owner/name, found x"),
        (["--competition", "a/b"], "--competition: .*found a/b"),
        (["--kaggle-model", "qwen/x"], "--kaggle-model: .*found qwen/x"),
        (["--offline"], "--offline: expected --kaggle-model"),
        (["--set", "image_side=2048", "--set", "micro_batch=16"], "safe"),
        (["--set", "image_sid=3"], "image_side"),
        (["--set", "target_modules=q_prj"], "q_prj"),
    ],
)
def test_what_kaggle_would_refuse_is_refused_before(export, tmp_path, words, expected):
    with pytest.raises(VqaError, match=expected):
        export("--preset", "safe", *words)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused(export, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(RunError, match="other files"):
        export("--preset", "safe")
    (tmp_path / "out" / "mine.txt").unlink()
    export("--preset", "safe")
    export("--preset", "safe")  # an earlier export's


def test_the_user_is_the_kaggle_packages(monkeypatch, tmp_path):
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    monkeypatch.setattr(kaggle, "ACCOUNT", tmp_path / "kaggle.json")
    with pytest.raises(RunError, match="--user"):
        kaggle.kaggle_user()
    (tmp_path / "kaggle.json").write_text(json.dumps({"username": "you", "key": "k"}))
    assert kaggle.kaggle_user() == "you"


@pytest.mark.slow
def test_wheels_are_of_the_other_python_and_without_torch(tmp_path, monkeypatch):
    """torch and torchvision are asked for, with what needs them, and come from nowhere."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("torch>=2.8\ntorchvision\naccelerate>=1.10\n")
    monkeypatch.setattr(wheels, "REQUIREMENTS", requirements)
    wheels.download_wheels(tmp_path / "wheels", "3.12")
    names = [file.name for file in (tmp_path / "wheels").iterdir()]
    packages = {name.split("-")[0] for name in names}
    assert {"accelerate", "numpy", "psutil"} <= packages
    assert not [name for name in packages if name.startswith(("torch", "nvidia", "triton"))]
    assert all("cp312" in name for name in names if name.startswith("numpy"))


@pytest.mark.slow
def test_a_package_that_is_nowhere_is_told_in_pips_words(tmp_path, monkeypatch):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("no-such-package-of-anybody==1\n")
    monkeypatch.setattr(wheels, "REQUIREMENTS", requirements)
    with pytest.raises(RunError, match="no-such-package-of-anybody"):
        wheels.download_wheels(tmp_path / "wheels", "3.12")

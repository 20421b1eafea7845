"""A launcher finds its machine, its data, its model and an earlier run."""

import json
import shutil
import zipfile

import pytest

from vqa_utils.artifacts.paths import SHAPES
from vqa_utils.exporting import inputs, launcher
from vqa_utils.exporting.inputs import LaunchError, Place

THIRTY_B = "Qwen3-VL-30B-A3B-Instruct.json"
T4 = "GPU-1, 15360, 266, Tesla T4"


@pytest.fixture
def place(tmp_path):
    """Kaggle's folders, empty."""
    made = Place("Kaggle", (tmp_path / "input",), tmp_path / "working")
    for folder in (*made.inputs, made.output):
        folder.mkdir()
    return made


def put(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Writes a stand-in that answers to both questions."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def answering(capabilities, memory):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(
            f"#!/bin/sh\ncase \"$*\" in *compute_cap*) printf '{capabilities}';; "
            f"*) printf '{memory}';; esac\n"
        )
        tool.chmod(0o755)

    return answering


@pytest.mark.parametrize(
    ("capabilities", "count", "found"),
    [
        ("Tesla T4, 7.5\\nTesla T4, 7.5\\n", 2, None),
        ("Tesla T4, 7.5\\n", 2, "found Tesla T4 .compute capability 7.5"),
        ("Tesla P100-PCIE-16GB, 6.0\\n", 2, "found Tesla P100-PCIE-16GB .compute capability 6.0"),
        ("Tesla T4, 7.5\\nTesla T4, 7.5\\nTesla P100, 6.0\\n", 2, "P100"),
        ("", 2, "found no GPU"),
    ],
)
def test_two_t4_are_checked_first(nvidia_smi, capabilities, count, found):
    nvidia_smi(capabilities, "")
    if found is None:
        launcher.check_gpus(count, launcher.gpus_here())
        return
    with pytest.raises(LaunchError, match=f"expected 2 T4 .*{found}.*GPU T4 x2"):
        launcher.check_gpus(count, launcher.gpus_here())


def test_a_machine_without_nvidia_smi_has_no_gpu(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert launcher.gpus_here() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ("GPU-1, 40960, 500, NVIDIA A100-SXM4-40GB", ["safe", "--set", "max_memory="]),
        (T4, ["dense_8b"]),
        ("GPU-1, 15360, 266, Tesla T4\\nGPU-2, 15360, 266, Tesla T4", ["safe"]),
        ("GPU-1, 8192, 200, Quadro", ["dense_8b"]),
        ("GPU-1, 6144, 200, Quadro", ["single_gpu"]),
        ("GPU-1, 3072, 200, Quadro", None),
    ],
)
def test_the_preset_with_the_largest_model_that_fits_is_taken(nvidia_smi, memory, words):
    nvidia_smi("Card, 7.5\\n", memory)
    if words:
        assert launcher._preset_that_fits() == words
        return
    with pytest.raises(LaunchError, match="found Card"):
        launcher._preset_that_fits()


@pytest.mark.parametrize("mount", ["ssafy", "competitions/ssafy", "datasets/me/ssafy/data"])
def test_the_challenge_is_found_wherever_it_is_mounted(place, mount):
    (root,) = place.inputs
    folder = put(root / mount, "train.csv", "test.csv")
    put(root / "other", "train.csv")
    put(root / "notebooks/me/x/runs/demo-data", "train.csv", "test.csv")
    put(root / ".hidden", "train.csv", "test.csv")
    assert inputs.find_data(place) == folder


def test_a_zip_with_the_challenge_is_unpacked(place, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = put(tmp_path / "challenge", "train.csv", "test.csv")
    shutil.make_archive(place.inputs[0] / "upload", "zip", folder)
    with zipfile.ZipFile(place.inputs[0] / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    found = inputs.find_data(place)
    assert found.name == "upload" and (found / "train.csv").is_file()


def test_several_challenges_and_none_are_told(place):
    with pytest.raises(LaunchError, match=r"found none.*--data"):
        launcher.run_arguments(place, "safe")
    assert launcher.run_arguments(place, "demo") == []
    first, second = (put(place.inputs[0] / name, "train.csv", "test.csv") for name in "ab")
    with pytest.raises(LaunchError, match=f"found {first}, {second}"):
        launcher.run_arguments(place, "safe")
    assert launcher.run_arguments(place, "safe", ["--data", str(first)]) == []


def model(folder, **changes):
    put(folder, "model-1.safetensors")
    config = json.loads((SHAPES / THIRTY_B).read_text())
    config["text_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_presets_model_is_found_among_others(place):
    (root,) = place.inputs
    data = put(root / "ssafy", "train.csv", "test.csv")
    model(root / "smaller", num_hidden_layers=2)
    put(root / "no-weights")
    shutil.copy(SHAPES / THIRTY_B, root / "no-weights" / "config.json")
    assert launcher.run_arguments(place, "safe") == ["--data", str(data)], "the hub has it"
    attached = model(root / "qwen-3-vl/transformers/30b-a3b-instruct/1")
    expected = ["--data", str(data), "--model", str(attached)]
    assert launcher.run_arguments(place, "safe") == expected
    model(root / "again")
    with pytest.raises(LaunchError, match=r"again.*qwen-3-vl.*--model"):
        launcher.run_arguments(place, "safe")


def test_the_run_that_started_last_goes_on(place):
    (root,) = place.inputs
    for name, started in (("a", "2026-01-02"), ("b", "2026-01-03"), ("latest", "2026-01-04")):
        run = put(root / "notebooks/me/x/runs" / name, "config.json")
        (run / "provenance.json").write_text(json.dumps({"started": started}))
    earlier = root / "notebooks/me/x/runs/b"
    assert launcher.run_arguments(place, "demo") == ["--resume-from", str(earlier)]
    put(place.output / "runs" / "c", "config.json")
    assert launcher.run_arguments(place, "demo") == ["--resume"], "the cell has run before"


def test_an_installation_that_fails_is_told_in_pips_words(tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("no-such-package-of-anybody==1\n")
    monkeypatch.setattr(launcher, "ROOT", tmp_path)
    (tmp_path / "wheels").mkdir()
    with pytest.raises(LaunchError, match=r"no-such-package-of-anybody(.|\n)*--python"):
        launcher.install_packages()

"""GPUs as nvidia-smi lists them and CUDA_VISIBLE_DEVICES leaves them."""

import os

import pytest

from vqa_utils.planning.machine import gpus
from vqa_utils.planning.machine.gpus import (
    T4,
    Gpu,
    MachineError,
    check_torch,
    describe_gpus,
    find_gpus,
    gpu_limits,
    used_memory,
    visible_numbers,
)
from vqa_utils.presets import preset

GIB = 2**30
H100 = Gpu("NVIDIA H100", 79.6)
# uuid, total, reserved, name; the numbers of an H200, whose memory CUDA has as 143,155 MiB
LINES = (
    "GPU-11aa-1, 15360, 266, Tesla T4",
    "GPU-22bb-2, 143771, 616, NVIDIA H200",
    "GPU-33cc-3, 4096, [N/A], GRID T4-4Q",
)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Writes a stand-in that answers with lines and a status."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)

    def answering(*lines, status=0):
        tool = tmp_path / "nvidia-smi"
        echo = "".join(f"echo '{line}'\n" for line in lines)
        tool.write_text(f"#!/bin/sh\n{echo}exit {status}\n")
        tool.chmod(0o755)

    return answering


def test_memory_is_the_total_without_the_drivers_reserve(nvidia_smi):
    nvidia_smi(*LINES)
    found = find_gpus()
    assert [gpu.name for gpu in found] == ["Tesla T4", "NVIDIA H200", "GRID T4-4Q"]
    assert [gpu.memory_gib * 1024 for gpu in found] == [15094, 143155, 4096]
    assert found[0].memory_gib == pytest.approx(T4.memory_gib, abs=0.01)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["NVIDIA H200"]),
        ("1,0", ["NVIDIA H200", "Tesla T4"]),
        ("1, 0", ["NVIDIA H200", "Tesla T4"]),
        ("GPU-22bb-2,GPU-11", ["NVIDIA H200", "Tesla T4"]),
        ("0,7,1", ["Tesla T4"]),  # CUDA ignores what follows an unknown one
        ("0,-1,1", ["Tesla T4"]),
        ("7", []),
        ("1,GPU", ["NVIDIA H200"]),  # the beginning of several
        ("all", []),
        ("", []),
        ("-1", []),
    ],
)
def test_visible_gpus_come_in_cudas_order(nvidia_smi, monkeypatch, visible, names):
    nvidia_smi(*LINES)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in find_gpus()] == names


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [(None, 2, ["0", "1"]), ("2,3", 2, ["2", "3"]), ("GPU-22bb-2", 1, ["GPU-22bb-2"])],
)
def test_a_visible_gpu_keeps_its_number_for_a_child_process(monkeypatch, visible, count, expected):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_numbers(count) == expected


def test_cuda_is_told_to_number_gpus_as_nvidia_smi_does(nvidia_smi, monkeypatch):
    nvidia_smi(*LINES)
    find_gpus()
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    find_gpus()
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"  # the user's own choice stays


def test_a_gpu_that_nvidia_smi_does_not_tell_of_is_an_error(nvidia_smi, monkeypatch, tmp_path):
    gpu_file = tmp_path / "nvidia0"
    monkeypatch.setattr(gpus, "FIRST_GPU", gpu_file)
    monkeypatch.setattr(gpus.shutil, "which", lambda name: None)
    assert find_gpus() == []
    gpu_file.touch()
    with pytest.raises(MachineError, match="nvidia-smi"):
        find_gpus()


@pytest.mark.parametrize(
    "lines",
    [
        ["[N/A], [N/A]"],
        ["No devices were found"],
        ["\\377\\376"],
        [],
    ],
)
def test_an_answer_without_a_gpu_is_none_or_is_told(nvidia_smi, monkeypatch, tmp_path, lines):
    gpu_file = tmp_path / "nvidia0"
    monkeypatch.setattr(gpus, "FIRST_GPU", gpu_file)
    nvidia_smi(*lines)
    assert find_gpus() == []
    gpu_file.touch()
    with pytest.raises(MachineError, match="nvidia-smi: expected the GPUs' names and memory"):
        find_gpus()


def test_a_gpu_of_unknown_memory_keeps_its_number(nvidia_smi, monkeypatch):
    nvidia_smi("GPU-44dd, [N/A], [N/A], NVIDIA GB10", *LINES)
    with pytest.raises(
        MachineError, match="expected the memory of each GPU, found none of GPU-44dd"
    ):
        find_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.name for gpu in find_gpus()] == ["Tesla T4"]


def test_a_warning_beside_the_answer_is_passed_over(nvidia_smi):
    nvidia_smi("WARNING: infoROM is corrupted at gpu 0000:00:04.0", *LINES)
    assert len(find_gpus()) == 3


def test_an_nvidia_smi_that_hangs_is_told(nvidia_smi, monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(gpus, "FIRST_GPU", tmp_path / "nvidia0")
    monkeypatch.setattr(gpus, "PATIENCE", 0.2)
    nvidia_smi("'; exec sleep 60; '")
    with pytest.raises(MachineError, match="no answer within"):
        find_gpus()


@pytest.mark.parametrize(
    ("visible", "found"),
    [("0,0", "one twice"), ("1,GPU-22bb", "one twice"), ("MIG-ab/1/0", "part")],
)
def test_visible_gpus_that_cannot_be_planned_with_are_told(nvidia_smi, monkeypatch, visible, found):
    nvidia_smi(*LINES)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(MachineError, match=f"CUDA_VISIBLE_DEVICES.*expected.*{found}"):
        find_gpus()


def test_an_nvidia_smi_that_fails_is_an_error_only_with_a_gpu(nvidia_smi, monkeypatch, tmp_path):
    gpu_file = tmp_path / "nvidia0"
    monkeypatch.setattr(gpus, "FIRST_GPU", gpu_file)
    nvidia_smi("Driver/library version mismatch", status=18)
    assert find_gpus() == []
    gpu_file.touch()
    with pytest.raises(MachineError, match="version mismatch"):
        find_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpus() == []


def test_a_limit_is_the_smaller_of_memory_and_setting():
    t4_without_context = int(14.24 * GIB)
    assert gpu_limits(preset("safe"), [T4, T4]) == [14 * 10**9] * 2
    assert gpu_limits(preset("safe"), [H100]) == [14 * 10**9]
    limits = gpu_limits(preset("safe", max_memory=("12GB", "15GiB")), [H100, T4])
    assert limits == [12 * 10**9, t4_without_context]
    assert gpu_limits(preset("safe", max_memory=()), [T4]) == [t4_without_context]
    assert gpu_limits(preset("safe", max_memory=("12GB",)), [H100, T4]) == [12 * 10**9]


def test_gpus_are_described_by_name_and_memory(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert describe_gpus([T4, H100]) == "Tesla T4 with 14.7 GiB, NVIDIA H100 with 79.6 GiB"
    assert describe_gpus([]) == "no GPU"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    assert describe_gpus([]) == "no GPU (CUDA_VISIBLE_DEVICES=all)"


def test_the_torch_with_the_slow_tower_is_refused():
    check_torch("2.10.0+cu128")
    with pytest.raises(MachineError, match=r"2\.9\.1\+cu126"):
        check_torch("2.9.1+cu126")


@pytest.mark.parametrize("contents", ["\x7fELF", "#!/no/such/shell\n"])
def test_an_nvidia_smi_that_cannot_be_run_is_an_error_only_with_a_gpu(
    nvidia_smi, monkeypatch, tmp_path, contents
):
    gpu_file = tmp_path / "nvidia0"
    monkeypatch.setattr(gpus, "FIRST_GPU", gpu_file)
    nvidia_smi()
    (tmp_path / "nvidia-smi").write_text(contents)
    assert find_gpus() == []
    gpu_file.touch()
    with pytest.raises(MachineError, match=r"nvidia-smi: .*\[Errno"):
        find_gpus()


def test_memory_in_use_is_of_the_visible_gpus_in_their_order(nvidia_smi, monkeypatch):
    nvidia_smi("GPU-11aa-1, 512", "GPU-22bb-2, 2048", "GPU-33cc-3, [N/A]")
    assert used_memory() == [0.5, 2.0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert used_memory() == [2.0, 0.5]


def test_memory_in_use_is_unknown_without_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert used_memory() == []

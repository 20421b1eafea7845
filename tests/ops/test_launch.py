"""The kernels' compilation, which needs no GPU, and the arguments of a launch."""

import ctypes
import importlib.util
import struct

import pytest
import torch

from vqa_utils.ops import launch

NEEDS_NVRTC = pytest.mark.skipif(
    not importlib.util.find_spec("cuda"), reason="torch before 2.10 comes without CUDA's bindings"
)


@NEEDS_NVRTC
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_the_kernels_compile(architecture):
    assert launch.compiled(architecture).startswith(b"\x7fELF")


@NEEDS_NVRTC
def test_a_kernel_that_does_not_compile_names_its_file_and_line(monkeypatch, tmp_path):
    (tmp_path / "fp16_vectors.cu").write_text("#define TWO 2\n")
    (tmp_path / "broken.cu").write_text('extern "C" __global__ void gate() {\nnonsense; }')
    monkeypatch.setattr(launch, "SOURCES", tmp_path)
    with pytest.raises(RuntimeError, match=r"sm_75.*broken\.cu\(2\): error: .*nonsense"):
        launch.compiled("sm_75")


def test_the_kernels_are_compiled_once_and_ahead_for_each_gpu(monkeypatch):
    compiled = []
    capability = {0: (7, 5), 1: (7, 5), torch.device("cuda", 0): (7, 5)}
    monkeypatch.setattr(launch, "compiled", lambda name: compiled.append(name) or b"code")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability.get)
    launch._being_compiled.cache_clear()
    try:
        launch.compile_ahead(torch.float32)  # they are of fp16
        assert not compiled
        launch.compile_ahead(torch.float16)
        architecture = launch._architecture(torch.device("cuda", 0))
        assert launch._being_compiled(architecture).result(60) == b"code"
        assert compiled == ["sm_75"], "two GPUs of a kind, and then the launch"
    finally:
        launch._being_compiled.cache_clear()


def test_an_error_of_the_compiler_waits_until_the_kernels_are_needed(monkeypatch):
    def fails(name):
        raise RuntimeError(f"{name}: no")

    monkeypatch.setattr(launch, "compiled", fails)
    launch._being_compiled.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="sm_75: no"):
            launch._being_compiled("sm_75").result(60)
    finally:
        launch._being_compiled.cache_clear()


def test_without_a_gpu_nothing_is_compiled_ahead(monkeypatch):
    compiled = []
    monkeypatch.setattr(launch, "_being_compiled", compiled.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch.compile_ahead(torch.float16)
    assert not compiled


def test_a_cpu_has_no_kernels():
    assert not launch.is_ready(torch.device("cpu"))


def test_each_argument_lies_in_a_slot_of_eight_bytes():
    tensor = torch.zeros(3)
    slots = launch._Slots(torch.Tensor, int, float, type(None))
    slots.write(tensor.data_ptr(), -7, 0.5, 0)
    addresses = (ctypes.c_void_p * 4).from_address(slots.pointers)
    found = [ctypes.string_at(address, 8) for address in addresses]
    assert struct.unpack("=Q", found[0]) == (tensor.data_ptr(),)
    assert struct.unpack("=i", found[1][:4]) == (-7,)
    assert struct.unpack("=f", found[2][:4]) == (0.5,)
    assert struct.unpack("=Q", found[3]) == (0,)


def test_slots_are_made_once_for_a_thread_and_argument_types():
    kinds = (torch.Tensor, int)
    assert launch._Slots.of(1, *kinds) is launch._Slots.of(1, *kinds)
    assert launch._Slots.of(1, *kinds) is not launch._Slots.of(2, *kinds)
    assert launch._Slots.of(1, *kinds) is not launch._Slots.of(1, torch.Tensor, float)

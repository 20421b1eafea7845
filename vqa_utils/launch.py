"""kernels.cu on a GPU: compiled by NVRTC when it is first asked for, launched on torch's stream.

NVRTC and its Python bindings are CUDA's own and come with torch since 2.10; no compiler has to be installed.
"""

import contextlib
import ctypes
import functools
import warnings
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("kernels.cu")
THREADS = 256  # a block
NAMES = (
    "dequantize", "gate", "gate_backward", "sum_rows", "count_loads", "place_pairs", "norm_rotate", "norm_rotate_backward",
)  # fmt: skip
TYPES = {int: ctypes.c_int, float: ctypes.c_float}  # of an argument; all others are pointers


def launch(name: str, device: torch.device, threads: int, *args: torch.Tensor | int | float | None, rows: int = 1) -> None:
    """Queue a kernel of kernels.cu on the current stream of a device for which `is_ready`.

    Args:
        threads: at least so many, in `rows` rows of blocks.
        args: a tensor stands for its address, None for no address.
    """
    from cuda.bindings import driver

    values = tuple([arg.data_ptr() if isinstance(arg, torch.Tensor) else arg or 0 for arg in args])
    types = _types(*map(type, args))
    size = (-(-threads // THREADS), rows, 1, THREADS, 1, 1)
    is_current = torch.cuda.current_device() == device.index
    with contextlib.nullcontext() if is_current else torch.cuda.device(device):
        stream = torch._C._cuda_getCurrentRawStream(device.index)  # torch.cuda.current_stream takes as long as the launch
        (error,) = driver.cuLaunchKernel(_functions(device)[name], *size, 0, stream, (values, types), 0)
    if error:
        raise RuntimeError(f"{SOURCE.name}: expected to launch {name} on {device}, found {error!r}")


@functools.cache
def is_ready(device: torch.device) -> bool:
    """Whether the kernels run on a device; where a GPU's cannot be made, that is said once."""
    if device.type != "cuda" or torch.version.hip:
        return False
    try:
        return bool(_functions(device))
    except (ImportError, RuntimeError) as error:
        warnings.warn(
            f"{device}: slower without the kernels of {SOURCE.name}, which could not be made ({error}); what they need comes "
            "with torch 2.10 and later, or as cuda-bindings of torch's CUDA version",
            stacklevel=2,
        )
        return False


def compiled(architecture: str) -> bytes:
    """kernels.cu for an architecture such as "sm_75".

    Raises:
        ImportError: NVRTC is not installed.
        RuntimeError: it does not compile; with the compiler's log.
    """
    from cuda.bindings import nvrtc

    _, program = nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), SOURCE.name.encode(), 0, [], [])
    (error,) = nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture={architecture}".encode()])
    if error:
        log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode()
        raise RuntimeError(f"{SOURCE.name}: expected code for {architecture}, found {error!r}: {log}")
    return _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)


def _read(size: Any, content: Any, program: Any) -> bytes:
    _, length = size(program)
    buffer = b" " * length
    content(program, buffer)
    return buffer


@functools.cache
def _functions(device: torch.device) -> dict[str, Any]:
    """Each kernel by name, on a device."""
    from cuda.bindings import driver

    with torch.cuda.device(device):
        torch.cuda.current_stream(device).synchronize()  # the device's context is there
        code = compiled("sm_{}{}".format(*torch.cuda.get_device_capability(device)))
        error, module = driver.cuModuleLoadData(code)
        if error:
            raise RuntimeError(repr(error))
    return {name: driver.cuModuleGetFunction(module, name.encode())[1] for name in NAMES}


@functools.cache
def _types(*kinds: type) -> tuple[type, ...]:
    return tuple(TYPES.get(kind, ctypes.c_void_p) for kind in kinds)

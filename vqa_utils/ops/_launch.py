"""The CUDA kernels of this folder: compiled by NVRTC when they are first asked for, launched on torch's stream.

NVRTC and its Python bindings are CUDA's own and come with torch since 2.10; no compiler has to be installed.
"""

import contextlib
import ctypes
import functools
import re
import struct
import threading
import warnings
from pathlib import Path
from typing import Any

import torch

SOURCES = Path(__file__).parent
SHARED = "fp16_vectors.cu"  # what the other files need before them
THREADS = 256  # a block
EIGHT = 8  # values that most of them take at a time, a thread
FORMATS = {int: "i4x", float: "f4x"}  # of an argument in its eight bytes; all others are pointers


def launch(
    name: str,
    device: torch.device,
    threads: int,
    *args: torch.Tensor | int | float | None,
    rows: int = 1,
) -> None:
    """Queue a kernel on the current stream of a device for which `is_ready`.

    Args:
        threads: at least so many, in `rows` rows of blocks.
        args: a tensor stands for its address, None for no address.
    """
    values = _Values.of(threading.get_ident(), *map(type, args))
    values.pack(*[arg.data_ptr() if isinstance(arg, torch.Tensor) else arg or 0 for arg in args])
    queue, function, blocks, index = (
        _driver().cuLaunchKernel,
        _functions(device)[name],
        -(-threads // THREADS),
        device.index,
    )
    # torch's own functions for the device and its stream take as long as the launch
    with (
        contextlib.nullcontext()
        if torch._C._cuda_getDevice() == index
        else torch.cuda.device(device)
    ):
        stream = torch._C._cuda_getCurrentRawStream(index)
        (error,) = queue(function, blocks, rows, 1, THREADS, 1, 1, 0, stream, values.pointers, 0)
    if error:
        raise RuntimeError(
            f"{SOURCES.name}: expected to launch {name} on {device}, found {error!r}"
        )


@functools.cache
def is_ready(device: torch.device) -> bool:
    """Whether the kernels run on a device; where a GPU's cannot be made, that is said once."""
    if device.type != "cuda" or torch.version.hip:
        return False
    try:
        return bool(_functions(device))
    except (ImportError, RuntimeError) as error:
        warnings.warn(
            f"{device}: slower without the CUDA kernels, which could not be made ({error}); what they need comes "
            "with torch 2.10 and later, or as cuda-bindings of torch's CUDA version",
            stacklevel=2,
        )
        return False


def compiled(architecture: str) -> bytes:
    """The kernels for an architecture such as "sm_75".

    Raises:
        ImportError: NVRTC is not installed.
        RuntimeError: they do not compile; with the compiler's log.
    """
    from cuda.bindings import nvrtc

    _, program = nvrtc.nvrtcCreateProgram(_source().encode(), SOURCES.name.encode(), 0, [], [])
    (error,) = nvrtc.nvrtcCompileProgram(
        program, 1, [f"--gpu-architecture={architecture}".encode()]
    )
    if error:
        log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode()
        raise RuntimeError(
            f"{SOURCES.name}: expected code for {architecture}, found {error!r}: {log}"
        )
    return _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)


def _source() -> str:
    """All files as one, in which a message of the compiler has the file and line of its own."""
    files = sorted(SOURCES.glob("*.cu"), key=lambda file: (file.name != SHARED, file.name))
    return "\n".join(f'#line 1 "{file.name}"\n{file.read_text()}' for file in files)


def _read(size: Any, content: Any, program: Any) -> bytes:
    _, length = size(program)
    buffer = b" " * length
    content(program, buffer)
    return buffer


@functools.cache
def _driver() -> Any:
    from cuda.bindings import driver

    return driver


@functools.cache
def _functions(device: torch.device) -> dict[str, Any]:
    """Each kernel by name, on a device."""
    driver = _driver()
    with torch.cuda.device(device):
        torch.cuda.current_stream(device).synchronize()  # the device's context is there
        code = compiled("sm_{}{}".format(*torch.cuda.get_device_capability(device)))
        error, module = driver.cuModuleLoadData(code)
        if error:
            raise RuntimeError(repr(error))
    names = re.findall(r'extern "C" __global__ void (\w+)\(', _source())
    return {name: driver.cuModuleGetFunction(module, name.encode())[1] for name in names}


class _Values:
    """Where the driver reads a kernel's arguments, eight bytes each.

    Made once for arguments of these types and a thread, as autograd has a thread for each GPU; cuda-bindings would build the
    same from tuples in each launch, which takes longer than the launch.
    """

    def __init__(self, *kinds: type):
        self.buffer = ctypes.create_string_buffer(8 * max(1, len(kinds)))
        start = ctypes.addressof(self.buffer)
        self.addresses = (ctypes.c_void_p * max(1, len(kinds)))(
            *(start + 8 * number for number in range(len(kinds)))
        )
        self.pointers = ctypes.addressof(self.addresses)
        self.pack = functools.partial(
            struct.Struct("=" + "".join(FORMATS.get(kind, "Q") for kind in kinds)).pack_into,
            self.buffer,
            0,
        )

    @staticmethod
    @functools.cache
    def of(thread: int, *kinds: type) -> "_Values":
        """Those of a thread, which is here for the cache's sake."""
        return _Values(*kinds)

"""Compile this folder's CUDA kernels while a model is loaded; launch them on torch's stream.

NVRTC and its Python bindings are CUDA's own and come with torch since 2.10; no compiler has to be
installed.

A launch takes a few microseconds of Python, and a step has about a thousand launches: whatever can
be made once is made once.
"""

import contextlib
import ctypes
import functools
import re
import struct
import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import torch

SOURCES = Path(__file__).parent
SHARED = "fp16_vectors.cu"  # included before the other files
THREADS = 256  # per block
WARP = 32  # threads
EIGHT = 8  # fp16 values, 16 bytes: the widest load of a thread

SLOT = 8  # bytes per argument: the widest arguments are pointers and 64-bit indices
NUMBERS = {int: "i4x", float: "f4x"}  # struct's formats of a slot: four bytes, and four of padding
POINTER = "Q"  # a tensor's address

Argument: TypeAlias = torch.Tensor | int | float | None  # of a kernel


def launch(name: str, device: torch.device, threads: int, *args: Argument, rows: int = 1) -> None:
    """Launch a kernel on the device's current CUDA stream; `is_ready(device)` must hold.

    Args:
        name: the kernel's.
        device: of the tensors.
        threads: rounded up to complete blocks, in x.
        args: the kernel's; a tensor stands for its address, None for the null pointer.
        rows: blocks in y.

    Raises:
        RuntimeError: CUDA refuses the launch.
    """
    values = [_value(arg) for arg in args]
    slots = _Slots.of(threading.get_ident(), *map(type, args))
    slots.write(*values)
    kernel = _kernels(device)[name]
    blocks = -(-threads // THREADS)  # rounded up
    # torch's own functions for the current device and stream would take as long as the launch
    is_current = torch._C._cuda_getDevice() == device.index
    with contextlib.nullcontext() if is_current else torch.cuda.device(device):
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        (error,) = _driver().cuLaunchKernel(
            kernel,
            blocks,  # in x
            rows,  # in y
            1,
            THREADS,  # per block, in x
            1,
            1,
            0,  # bytes of dynamic shared memory
            stream,
            slots.pointers,
            0,  # no further options
        )
    if error:
        raise RuntimeError(
            f"{SOURCES.name}: expected to launch {name} on {device}, found {error!r}"
        )


def _value(argument: Argument) -> int | float:
    """Return the number to write into an argument's slot: an address, 0 for None, or itself."""
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    if argument is None:
        return 0
    return argument


class _Slots:
    """Buffers from which the driver reads a kernel's arguments.

        pointers -> [address of slot 0][address of slot 1] ...
        buffer   -> [slot 0: 8 bytes  ][slot 1: 8 bytes  ] ...

    cuda-bindings would build the same from tuples in each launch, which takes longer than the
    launch. The driver copies the slots before it returns, so the next launch may write into them.
    """

    def __init__(self, *kinds: type):
        """Lay out one slot per argument of these types."""
        count = max(1, len(kinds))  # ctypes has no empty arrays
        self._buffer = ctypes.create_string_buffer(SLOT * count)
        start = ctypes.addressof(self._buffer)
        addresses = [start + SLOT * number for number in range(count)]
        self._addresses = (ctypes.c_void_p * count)(*addresses)
        self.pointers = ctypes.addressof(self._addresses)
        formats = [NUMBERS.get(kind, POINTER) for kind in kinds]
        layout = struct.Struct("=" + "".join(formats))  # without padding of its own
        # Called with the arguments' values in each launch, so it runs no Python
        self.write = functools.partial(layout.pack_into, self._buffer, 0)

    @staticmethod
    @functools.cache
    def of(thread: int, *kinds: type) -> "_Slots":
        """Return a thread's slots for arguments of these types, made once.

        Args:
            thread: makes the cache keep slots per thread: autograd has one per GPU.
        """
        return _Slots(*kinds)


@functools.cache
def is_ready(device: torch.device) -> bool:
    """Tell whether the kernels run on a device; warn once if a GPU's cannot be made."""
    if device.type != "cuda" or torch.version.hip:  # ROCm calls its devices "cuda" too
        return False
    try:
        return bool(_kernels(device))
    except (ImportError, RuntimeError) as error:
        warnings.warn(
            f"{device}: slower without the CUDA kernels, which could not be made ({error}); "
            "what they need comes with torch 2.10 and later, "
            "or as cuda-bindings of torch's CUDA version",
            stacklevel=2,
        )
        return False


@functools.cache
def _kernels(device: torch.device) -> dict[str, Any]:
    """Compile and load all kernels on a device; return each by its name."""
    driver = _driver()
    with torch.cuda.device(device):
        torch.cuda.current_stream(device).synchronize()  # now the device has its context
        code = _being_compiled(_architecture(device))
        error, module = driver.cuModuleLoadData(code.result())
        if error:
            raise RuntimeError(repr(error))
    names = re.findall(r'extern "C" __global__ void (\w+)\(', _source())
    return {name: driver.cuModuleGetFunction(module, name.encode())[1] for name in names}


@functools.cache
def _driver() -> Any:
    """Return CUDA's driver.

    Raises:
        ImportError: its bindings are not installed.
    """
    from cuda.bindings import driver

    return driver


def compile_ahead(dtype: torch.dtype) -> None:
    """Begin to compile the kernels for this machine's GPUs, while a model of this type is loaded.

    An error is raised where they are first asked for.
    """
    if dtype == torch.float16 and torch.cuda.is_available() and not torch.version.hip:
        for device in range(torch.cuda.device_count()):
            _being_compiled(_architecture(device))


def _architecture(device: torch.device | int) -> str:
    """Name a GPU's architecture, such as "sm_75"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.cache
def _being_compiled(architecture: str) -> Future[bytes]:
    """Compile the kernels in a thread of their own, once; NVRTC lets other threads run."""
    executor = ThreadPoolExecutor(1, "nvrtc")
    code = executor.submit(compiled, architecture)
    executor.shutdown(wait=False)
    return code


def compiled(architecture: str) -> bytes:
    """Compile the kernels for an architecture such as "sm_75".

    Raises:
        ImportError: NVRTC is not installed.
        RuntimeError: they do not compile; with the compiler's log.
    """
    from cuda.bindings import nvrtc

    name = SOURCES.name.encode()
    _, program = nvrtc.nvrtcCreateProgram(_source().encode(), name, 0, [], [])
    options = [f"--gpu-architecture={architecture}".encode()]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if error:
        log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode()
        raise RuntimeError(
            f"{SOURCES.name}: expected code for {architecture}, found {error!r}: {log}"
        )
    # Machine code, as a driver older than NVRTC could not load its PTX
    return _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)


def _source() -> str:
    """Join all files; the compiler's messages name each one's own file and line."""
    # False sorts before True, so SHARED comes first
    files = sorted(SOURCES.glob("*.cu"), key=lambda file: (file.name != SHARED, file.name))
    return "\n".join(f'#line 1 "{file.name}"\n{file.read_text()}' for file in files)


def _read(size: Any, content: Any, program: Any) -> bytes:
    """Return NVRTC's log or code: `size` returns its bytes, `content` fills a buffer with it."""
    _, length = size(program)
    buffer = b" " * length
    content(program, buffer)
    return buffer

"""A GPU's memory that other processes can map: CUDA's virtual memory, without torch.

    lender     handle = create(size, gpu)        fd = exported(handle)
    others     handle = imported(fd)             address = mapped(handle, size, gpu, writable=False)

It is free again once no process has a mapping, a handle or a descriptor of it. As a program it tells
in a second or two whether this machine's processes can share memory of its first GPUs:

    python -m vqa_utils.sharing.gpu_memory GPUS
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

PAGE = 2**21  # bytes; CUDA maps memory in pages of 2 MiB


class LendingError(RuntimeError):
    """This machine cannot share memory between processes."""


def create(size: int, gpu: int) -> Any:
    """Take memory of `size` bytes, a multiple of PAGE, on a GPU; return CUDA's handle.

    Raises:
        LendingError: CUDA refuses.
    """
    driver = _driver()
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location = _location(gpu)
    properties.requestedHandleTypes = _descriptor_kind()
    (handle,) = _checked(driver.cuMemCreate(size, properties, 0))
    return handle


def exported(handle: Any) -> int:
    """Return a file descriptor of memory."""
    kind = _descriptor_kind()
    (descriptor,) = _checked(_driver().cuMemExportToShareableHandle(handle, kind, 0))
    return int(descriptor)


def imported(descriptor: int) -> Any:
    """Return a handle of memory behind a file descriptor, which stays open.

    Raises:
        LendingError: CUDA refuses.
    """
    kind = _descriptor_kind()
    (handle,) = _checked(_driver().cuMemImportFromShareableHandle(descriptor, kind))
    return handle


def mapped(handle: Any, size: int, gpu: int, *, writable: bool) -> int:
    """Give memory an address on a GPU, until this process ends.

    Args:
        writable: if not, CUDA ends this process when it writes there.
    """
    driver = _driver()
    (address,) = _checked(driver.cuMemAddressReserve(size, 0, 0, 0))
    _checked(driver.cuMemMap(address, size, 0, handle, 0))
    flags = driver.CUmemAccess_flags
    access = driver.CUmemAccessDesc()
    access.location = _location(gpu)
    access.flags = flags.CU_MEM_ACCESS_FLAGS_PROT_READ
    if writable:
        access.flags = flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    _checked(driver.cuMemSetAccess(address, size, [access], 1))
    return int(address)


def release(handle: Any) -> None:
    """Let go of a handle; mappings and descriptors keep the memory."""
    _checked(_driver().cuMemRelease(handle))


def self_test(gpus: Iterable[int]) -> None:
    """Lend a page on each GPU to this process itself, and read it.

    Raises:
        LendingError: this machine cannot share GPU memory.
    """
    driver = _driver()
    for gpu in gpus:
        written = bytes([gpu + 1]) * PAGE
        found = ctypes.create_string_buffer(PAGE)
        with _context(gpu):
            handle = create(PAGE, gpu)
            own = mapped(handle, PAGE, gpu, writable=True)
            _checked(driver.cuMemcpyHtoD(own, written, PAGE))
            others = mapped(imported(exported(handle)), PAGE, gpu, writable=False)
            _checked(driver.cuMemcpyDtoH(ctypes.addressof(found), others, PAGE))
        if found.raw != written:
            raise LendingError(f"GPU {gpu}: expected to read what was written, found other bytes")


@contextlib.contextmanager
def _context(gpu: int) -> Iterator[None]:
    """Compute on a GPU in the context that torch uses too."""
    driver = _driver()
    _checked(driver.cuInit(0))
    (device,) = _checked(driver.cuDeviceGet(gpu))
    (context,) = _checked(driver.cuDevicePrimaryCtxRetain(device))
    _checked(driver.cuCtxPushCurrent(context))
    try:
        yield
    finally:
        _checked(driver.cuCtxPopCurrent())


def _location(gpu: int) -> Any:
    driver = _driver()
    location = driver.CUmemLocation()
    location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    location.id = gpu
    return location


def _descriptor_kind() -> Any:
    return _driver().CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise LendingError(f"cuda-bindings are not installed ({error})") from error
    return driver


def _checked(result: Sequence[Any]) -> Sequence[Any]:
    """Return a driver function's results without its error code."""
    error, *values = result
    if int(error):
        raise LendingError(repr(error))
    return values


if __name__ == "__main__":
    try:
        self_test(range(int(sys.argv[1])))
    except LendingError as error:
        sys.exit(f"this machine's processes cannot share memory: {error}")

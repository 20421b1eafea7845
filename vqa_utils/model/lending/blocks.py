"""Memory that other processes can map: a GPU's by CUDA's virtual memory, a host's by mmap.

    lender     memory = allocate(size, gpu)    tensor = memory.tensor    fd = memory.export()
    others     tensor = mapped(fd, size, gpu)  read-only: CUDA ends a process that writes

A descriptor can be sent through a socket. The memory is free again once no process has a mapping
or a descriptor of it. CUDA IPC would need the lender and its CUDA memory for as long as folds
train, and in an unprivileged container it refuses the segments that torch allocates by default
(pytorch/pytorch#165685).
"""

import mmap
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

PAGE = 2**21  # bytes; CUDA maps GPU memory in pages of 2 MiB


class LendingError(RuntimeError):
    """This machine cannot share memory between processes."""


@dataclass(frozen=True)
class Memory:
    """Memory that this process may write, and export to others."""

    tensor: torch.Tensor
    """uint8 [size]"""
    handle: Any
    """CUDA's, or a file descriptor of host memory"""

    def export(self) -> int:
        """Return a file descriptor of this memory."""
        if not self.tensor.is_cuda:
            return os.dup(self.handle)
        kind = _descriptor_kind()
        (descriptor,) = _checked(_driver().cuMemExportToShareableHandle(self.handle, kind, 0))
        return int(descriptor)


def allocate(size: int, gpu: int | None) -> Memory:
    """Take memory of `size` bytes, a multiple of PAGE, on a GPU, or in the host for None.

    Raises:
        LendingError: CUDA refuses.
    """
    if gpu is None:
        if not hasattr(os, "memfd_create"):
            raise LendingError("expected Linux, whose memory has file descriptors")
        descriptor = os.memfd_create("vqa-base")
        os.truncate(descriptor, size)
        stretch = mmap.mmap(descriptor, size)
        return Memory(torch.frombuffer(stretch, dtype=torch.uint8), descriptor)
    driver = _driver_on(gpu)
    with torch.cuda.device(gpu):
        (handle,) = _checked(driver.cuMemCreate(size, _properties(gpu), 0))
        tensor = _map(
            handle, size, gpu, driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        )
    return Memory(tensor, handle)


def mapped(descriptor: int, size: int, gpu: int | None) -> torch.Tensor:
    """Map memory behind a file descriptor, read-only, until this process ends; uint8 [size].

    The descriptor is closed.

    Raises:
        LendingError: CUDA refuses.
    """
    if gpu is None:
        stretch = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        os.close(descriptor)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")  # as it is meant
            return torch.frombuffer(stretch, dtype=torch.uint8)
    driver = _driver_on(gpu)
    with torch.cuda.device(gpu):
        kind = _descriptor_kind()
        (handle,) = _checked(driver.cuMemImportFromShareableHandle(descriptor, kind))
        tensor = _map(handle, size, gpu, driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READ)
        _checked(driver.cuMemRelease(handle))  # the mapping keeps the memory
    os.close(descriptor)
    return tensor


class _Address:
    """GPU memory, as `torch.as_tensor` takes it."""

    def __init__(self, address: int, size: int):
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
        }


def _map(handle: Any, size: int, gpu: int, access: Any) -> torch.Tensor:
    """Give memory an address on a GPU."""
    driver = _driver()
    (address,) = _checked(driver.cuMemAddressReserve(size, 0, 0, 0))
    _checked(driver.cuMemMap(address, size, 0, handle, 0))
    description = driver.CUmemAccessDesc()
    description.location = _location(gpu)
    description.flags = access
    _checked(driver.cuMemSetAccess(address, size, [description], 1))
    return torch.as_tensor(_Address(int(address), size), device=f"cuda:{gpu}")


def _properties(gpu: int) -> Any:
    driver = _driver()
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location = _location(gpu)
    properties.requestedHandleTypes = _descriptor_kind()
    return properties


def _location(gpu: int) -> Any:
    driver = _driver()
    location = driver.CUmemLocation()
    location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    location.id = gpu
    return location


def _descriptor_kind() -> Any:
    return _driver().CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


def _driver_on(gpu: int) -> Any:
    """Return CUDA's driver, with torch's context on the GPU made."""
    driver = _driver()
    torch.cuda.synchronize(gpu)
    return driver


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


def self_test(gpus: Sequence[int]) -> None:
    """Lend a page on each GPU to this process itself, and read it.

    Raises:
        LendingError: this machine cannot share GPU memory.
    """
    for gpu in gpus:
        memory = allocate(PAGE, gpu)
        memory.tensor.fill_(gpu + 1)
        found = mapped(memory.export(), PAGE, gpu)
        if not bool((found == gpu + 1).all()):
            raise LendingError(f"GPU {gpu}: expected to read what was written, found other bytes")

"""Memory that other processes can map, as tensors: a GPU's, or a host's by mmap.

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
from dataclasses import dataclass
from typing import Any

import torch

from vqa_utils.sharing import gpu_memory
from vqa_utils.sharing.gpu_memory import LendingError


@dataclass(frozen=True)
class Memory:
    """Memory that this process may write, and export to others."""

    tensor: torch.Tensor
    """uint8 [size]"""
    handle: Any
    """CUDA's, or a file descriptor of host memory"""

    def export(self) -> int:
        """Return a file descriptor of this memory."""
        if self.tensor.is_cuda:
            return gpu_memory.exported(self.handle)
        return os.dup(self.handle)


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
    with _context(gpu):
        handle = gpu_memory.create(size, gpu)
        address = gpu_memory.mapped(handle, size, gpu, writable=True)
        return Memory(_tensor(address, size, gpu), handle)


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
    with _context(gpu):
        handle = gpu_memory.imported(descriptor)
        address = gpu_memory.mapped(handle, size, gpu, writable=False)
        gpu_memory.release(handle)  # the mapping keeps the memory
        os.close(descriptor)
        return _tensor(address, size, gpu)


def _context(gpu: int) -> torch.cuda.device:
    """Compute on a GPU in torch's context, which is made first."""
    torch.cuda.synchronize(gpu)
    return torch.cuda.device(gpu)


def _tensor(address: int, size: int, gpu: int) -> torch.Tensor:
    """Return GPU memory as a tensor, uint8 [size]."""
    return torch.as_tensor(_Address(address, size), device=f"cuda:{gpu}")


class _Address:
    """GPU memory, as `torch.as_tensor` takes it."""

    def __init__(self, address: int, size: int):
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
        }

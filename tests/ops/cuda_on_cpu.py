"""Run the CUDA kernels of vqa_utils/ops without a GPU: compiled by g++, thread by thread.

Only their arithmetic and their synchronisation are seen this way, and no speed: a warp's threads
run one after the other, from one synchronisation to the next.
"""

import ctypes
import functools
import importlib
import pkgutil
import re
import subprocess
import tempfile
from pathlib import Path

import torch

import vqa_utils.ops
from vqa_utils.ops import launch, router_logits

SHIM = Path(__file__).with_suffix(".h")
KERNEL = re.compile(r'extern "C" __global__ void (\w+)\((.*?)\)', re.DOTALL)
CONVERSIONS = {
    'asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));': "y = float_of_half(x);",
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));': "y = half_of_float(x);",
}


class Driver:
    """Launches kernels as CUDA's driver does."""

    def cuLaunchKernel(self, kernel, blocks, rows, _, threads, *others):
        *_, arguments, _ = others
        kernel(ctypes.c_void_p(arguments), blocks, rows, threads)
        return (0,)


@functools.cache
def kernels():
    """Compile all kernels; return each by its name."""
    source = launch._source()
    for words, replacement in CONVERSIONS.items():
        assert words in source, words
        source = source.replace(words, replacement)
    parts = [f'#include "{SHIM}"', source]
    names = []
    for name, parameters in KERNEL.findall(source):
        names.append(name)
        given = []
        for place, parameter in enumerate(parameters.split(",")):
            kind = parameter.strip().rpartition(" ")[0].replace("__restrict__", "")
            given.append(f"*({kind}*)arguments[{place}]")
        parts.append(
            f'extern "C" void run_{name}(void** arguments, int blocks, int rows, int threads) '
            f"{{ run(blocks, rows, threads, [=] {{ {name}({', '.join(given)}); }}); }}"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cpp"
        file.write_text("\n".join(parts))
        library = file.with_suffix(".so")
        options = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
        subprocess.run(["g++", *options, str(file), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))
    return {name: getattr(loaded, f"run_{name}") for name in names}


def use_kernels(monkeypatch):
    """Let the operations launch their kernels on a CPU's tensors."""
    monkeypatch.setattr(launch, "_kernels", lambda device: kernels())
    monkeypatch.setattr(launch, "_driver", Driver)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: None, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    for module in pkgutil.iter_modules(vqa_utils.ops.__path__, "vqa_utils.ops."):
        operation = importlib.import_module(module.name)
        if hasattr(operation, "is_ready") and operation is not launch:
            monkeypatch.setattr(operation, "is_ready", lambda device: True)
    # A product of fp16 into fp32 is cuBLAS's: its arithmetic is fp32's, of numbers in fp16
    monkeypatch.setattr(router_logits, "_product", lambda x, weight: x.float() @ weight.float().T)

"""Each operation in three ways: torch's own operations, and the kernels on a GPU and without one."""

import shutil

import pytest
import torch
from cuda_on_cpu import use_kernels

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
NEEDS_COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


@pytest.fixture(
    params=[
        "fall-back",
        pytest.param("kernels without a GPU", marks=NEEDS_COMPILER),
        pytest.param("kernels", marks=NEEDS_GPU),
    ]
)
def way(request, monkeypatch):
    if request.param == "kernels without a GPU":
        use_kernels(monkeypatch)
    return request.param


@pytest.fixture
def device(way):
    return "cuda" if way == "kernels" else "cpu"


@pytest.fixture
def dtype(way):
    """What the kernels compute in; their fall-backs take any type, and are held to fp32."""
    return torch.float32 if way == "fall-back" else torch.float16


@pytest.fixture
def tolerance(way):
    """What rounding to that type may cost, relative and absolute."""
    return 1e-5 if way == "fall-back" else 2e-3

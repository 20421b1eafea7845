"""Each operation on both devices: torch's own operations on a CPU, the kernels on a GPU (`pytest -m gpu`)."""

import pytest
import torch

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def device(request):
    return request.param


@pytest.fixture
def dtype(device):
    """What the kernels compute in; their fall-backs take any type, and are held to fp32."""
    return torch.float16 if device == "cuda" else torch.float32


@pytest.fixture
def tolerance(device):
    """What rounding to that type may cost, relative and absolute."""
    return 2e-3 if device == "cuda" else 1e-5

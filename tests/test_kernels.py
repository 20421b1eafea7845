"""Each kernel against torch's own operations: those are tested on a CPU, the kernels on a GPU (`pytest -m gpu`)."""

import importlib.util

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import nn

from vqa_utils import kernels, launch
from vqa_utils.attention import NormRotate, Rotate
from vqa_utils.kernels import Packed, dequantize, gate, gate_backward, sum_rows

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
ON_GPU = pytest.param("cuda", marks=NEEDS_GPU)
each_device = pytest.mark.parametrize("device", ["cpu", ON_GPU])


def packed(double_quant, device, shapes=((96, 128), (128, 48)), count=5):
    """Experts of two shapes in NF4, and the same by bitsandbytes."""
    torch.manual_seed(0)
    parts, dense = [], []
    for rows, columns in shapes:
        tensors = []
        for _ in range(count):
            weight = torch.randn(rows, columns, device=device)
            data, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double_quant)
            absmax, rest = state.absmax, ()
            if double_quant:
                absmax = absmax.new_zeros(len(state.state2.absmax), 256)
                absmax.flatten()[: len(state.absmax)] = state.absmax
                rest = (state.state2.absmax, state.offset.view(1))
            scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset if double_quant else absmax
            args = (
                data.flatten(),
                scales,
                64,
                "nf4",
                (scales.numel(), 64),
                torch.float16 if device == "cuda" else torch.float32,
            )
            dense.append(torch.ops.bitsandbytes.dequantize_4bit(*args).flatten())
            tensors.append((data.flatten(), absmax, *rest))
        parts.append(Packed(*map(torch.stack, zip(*tensors, strict=True))))
    return parts, [torch.stack(dense[:count]), torch.stack(dense[count:])]


@each_device
@pytest.mark.parametrize("double_quant", [True, False])
def test_dense_weights_are_bitsandbytes_own_bit_by_bit(device, double_quant):
    parts, dense = packed(double_quant, device)
    order = torch.tensor([3, 0, 4], device=device)
    for found, whole in zip(dequantize(parts, order, dense[0].dtype), dense, strict=True):
        torch.testing.assert_close(found, whole[order], rtol=0, atol=0)
    (found,) = dequantize(parts[1:], None, dense[0].dtype)
    torch.testing.assert_close(found, dense[1], rtol=0, atol=0)


@each_device
def test_gates_with_their_gradients(device):
    dtype, tolerance = (torch.float16, 2e-3) if device == "cuda" else (torch.float32, 1e-5)
    torch.manual_seed(0)
    gate_up, back = torch.randn(70, 2 * 48, device=device).to(dtype), torch.randn(70, 48, device=device).to(dtype)
    weights, pair = torch.rand(40, 8, device=device), torch.randint(320, (70,), device=device)
    inputs = [tensor.double().requires_grad_() for tensor in (gate_up, weights)]
    first, second = inputs[0].chunk(2, dim=-1)
    weight = inputs[1].flatten()[pair, None].detach().requires_grad_()
    expected = nn.functional.silu(first) * second * weight
    grads = torch.autograd.grad(expected, (inputs[0], weight), back.double())
    torch.testing.assert_close(gate(gate_up, weights, pair, nn.SiLU()).double(), expected, rtol=tolerance, atol=tolerance)
    dots = torch.empty(70, device=device)
    found = gate_backward(gate_up, back, weights, pair, nn.SiLU(), dots)
    torch.testing.assert_close(found.double(), grads[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(dots.double(), grads[1].flatten(), rtol=tolerance, atol=tolerance)


@each_device
def test_a_large_gate_does_not_overflow(device):
    dtype = torch.float16 if device == "cuda" else torch.float32
    gate_up = torch.tensor([[6e4] * 8 + [1.0] * 8, [-6e4] * 8 + [1.0] * 8], device=device).to(dtype)
    weights, pair = torch.ones(2, 1, device=device), torch.arange(2, device=device)
    h = gate(gate_up, weights, pair, nn.SiLU())
    assert h[0].tolist() == [6e4 if dtype == torch.float32 else float(torch.tensor(6e4).half())] * 8 and h[1].abs().max() == 0
    found = gate_backward(gate_up, torch.ones_like(h), weights, pair, nn.SiLU(), torch.empty(2, device=device))
    assert found.isfinite().all()


@each_device
def test_the_rows_of_each_token_are_added(device):
    torch.manual_seed(0)
    rows = torch.randn(50, 24, device=device, dtype=torch.float16 if device == "cuda" else torch.float32)
    index = torch.randint(50, (9, 4), device=device)
    torch.testing.assert_close(sum_rows(rows, index).float(), rows.float()[index].sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", [ON_GPU])
@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("heads_first", [True, False])
def test_norm_and_rotation_with_their_gradient(device, d, heads_first):
    torch.manual_seed(0)
    x, grad = (torch.randn(2, 7, 3, d, device=device).half() for _ in range(2))
    if heads_first:  # as sdpa's gradients lie
        grad = grad.transpose(1, 2).contiguous().transpose(1, 2)
    weight, angle = torch.rand(d, device=device) + 0.5, torch.rand(2, 7, d // 2, device=device).repeat(1, 1, 2)
    cos, sin = angle.cos().half(), angle.sin().half()
    exact = x.double().requires_grad_()
    normed = nn.functional.rms_norm(exact, (d,), weight.double(), 1e-6)
    expected = Rotate.apply(normed, cos.double()[:, :, None], sin.double()[:, :, None], 1)
    (wanted,) = torch.autograd.grad(expected, exact, grad.double())
    x.requires_grad_()
    found = NormRotate.apply(x, weight, 1e-6, cos, sin)
    (got,) = torch.autograd.grad(found, x, grad)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(got.double(), wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.skipif(not importlib.util.find_spec("cuda"), reason="torch before 2.10 comes without CUDA's bindings")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_the_kernels_compile_for_a_t4(architecture):
    assert launch.compiled(architecture).startswith(b"\x7fELF")


@pytest.mark.skipif(not importlib.util.find_spec("cuda"), reason="torch before 2.10 comes without CUDA's bindings")
def test_a_kernel_that_does_not_compile_says_where(monkeypatch, tmp_path):
    broken = tmp_path / "kernels.cu"
    broken.write_text('extern "C" __global__ void gate() { nonsense; }')
    monkeypatch.setattr(launch, "SOURCE", broken)
    with pytest.raises(RuntimeError, match=r"kernels\.cu: expected code for sm_75.*\n*.*nonsense"):
        launch.compiled("sm_75")


def test_a_cpu_has_no_kernels():
    assert not kernels.is_ready(torch.device("cpu"))

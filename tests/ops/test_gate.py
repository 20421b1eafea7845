import torch
from torch import nn

from vqa_utils.ops.gate import gate, gate_backward


def test_gated_rows_and_their_gradients(device, dtype, tolerance):
    torch.manual_seed(0)
    gate_up = torch.randn(70, 2 * 48, device=device).to(dtype)
    back = torch.randn(70, 48, device=device).to(dtype)
    weights = torch.rand(40, 8, device=device)
    pair = torch.randint(320, (70,), device=device)
    exact = gate_up.double().requires_grad_()
    weight = weights.double().flatten()[pair, None].requires_grad_()
    first, second = exact.chunk(2, dim=-1)
    expected = nn.functional.silu(first) * second * weight
    wanted, wanted_dots = torch.autograd.grad(expected, (exact, weight), back.double())
    h = gate(gate_up, weights, pair, nn.SiLU())
    torch.testing.assert_close(h.double(), expected, rtol=tolerance, atol=tolerance)
    dots = torch.empty(70, device=device)
    found = gate_backward(gate_up, back, weights, pair, nn.SiLU(), dots)
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(dots.double(), wanted_dots.flatten(), rtol=tolerance, atol=tolerance)


def test_a_large_gate_does_not_overflow(device, dtype):
    gate_up = torch.tensor([[6e4] * 8 + [1.0] * 8, [-6e4] * 8 + [1.0] * 8], device=device)
    gate_up = gate_up.to(dtype)
    weights, pair = torch.ones(2, 1, device=device), torch.arange(2, device=device)
    h = gate(gate_up, weights, pair, nn.SiLU())
    assert torch.equal(h[0], torch.full_like(h[0], 6e4))
    assert h[1].abs().max() == 0
    dots = torch.empty(2, device=device)
    found = gate_backward(gate_up, torch.ones_like(h), weights, pair, nn.SiLU(), dots)
    assert found.isfinite().all()

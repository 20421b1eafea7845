import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm, rms_norm

from vqa_utils.ops.norms import add_norm, norm_backward

EPS = 1e-6


class RmsNorm(nn.Module):
    """As transformers' RMS norms are."""

    def __init__(self, width, device):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width, device=device) + 0.5)
        self.variance_epsilon = EPS


def norm_of(kind, width, device):
    if kind == "rms":
        return RmsNorm(width, device)
    norm = nn.LayerNorm(width, eps=EPS, device=device)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def exact_norm(x, norm):
    width, weight = x.shape[-1], norm.weight.double()
    if isinstance(norm, RmsNorm):
        return rms_norm(x, (width,), weight, EPS)
    return layer_norm(x, (width,), weight, norm.bias.double(), EPS)


@pytest.mark.parametrize("width", [40, 2048, 8192])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("added", [True, False])
@torch.no_grad()
def test_a_sum_and_its_norm(device, dtype, tolerance, width, kind, added):
    torch.manual_seed(0)
    x = torch.randn(2, 5, width, device=device) * 3
    delta = torch.randn(2, 5, width, device=device).to(dtype)
    norm, before = norm_of(kind, width, device), x.clone()
    total, narrow, rest = add_norm(x, delta if added else None, norm, dtype, rest=True)
    expected = x.double() + delta.double() if added else x.double()
    normed = exact_norm(expected, norm)
    assert torch.equal(x, before) and narrow.dtype == dtype
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(narrow.double(), normed, rtol=tolerance, atol=tolerance)
    if rest is not None:  # else the norm is in the type of the products already
        exact = narrow.double() + rest.double()
        torch.testing.assert_close(exact, normed, rtol=1e-5, atol=1e-5)
        assert (rest.abs() <= narrow.abs() * 2**-11 + 2**-25).all()
    assert (rest is None) == (dtype == x.dtype)
    assert add_norm(x, delta, norm, dtype).rest is None


@pytest.mark.parametrize("width", [40, 2048, 8192])
@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.parametrize("narrow", [torch.float16, torch.float32])
def test_a_norms_gradient_joins_that_of_the_residual_stream(device, width, is_wide, narrow):
    torch.manual_seed(0)
    x = torch.randn(2, 5, width, device=device)
    residual = torch.randn(2, 5, width, device=device)
    norm = RmsNorm(width, device)
    grad = torch.randn(2, 5, width, device=device).to(torch.float32 if is_wide else narrow)
    exact = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(exact_norm(exact, norm), exact, grad.double())
    expected = residual.double() + expected
    with torch.no_grad():
        found, in_narrow = norm_backward(x, norm, grad, residual, narrow)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(in_narrow, found.to(narrow))
        assert norm_backward(x, norm, grad, residual)[1] is None

import torch
from torch.nn.functional import gelu

from vqa_utils.ops.linear_gelu import linear_gelu


def test_a_product_with_bias_and_gelu(device):
    dtype, tolerance = (torch.float16, 2e-3) if device == "cuda" else (torch.float32, 1e-5)
    torch.manual_seed(0)
    x = torch.randn(300, 96, device=device).to(dtype)
    weight = torch.randn(160, 96, device=device).to(dtype) / 8
    bias = torch.randn(160, device=device).to(dtype)
    product = x.double() @ weight.double().T + bias.double()
    found = linear_gelu(x, weight, bias)
    assert found.dtype == dtype
    wanted = gelu(product, approximate="tanh")
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    exact = gelu(product)
    assert (wanted - exact).abs().max() > 3e-4, "the two forms can be told apart"

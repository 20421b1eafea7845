import pytest
import torch
from torch import nn
from torch.nn.functional import linear, rms_norm

from vqa_utils.ops.norms import add_norm
from vqa_utils.ops.router_logits import router_logits, split_weight


@pytest.mark.parametrize("scale", [1.0, 0.02, 0.0005])
@torch.no_grad()
def test_logits_are_as_exact_as_fp32s(way, device, dtype, scale):
    """Within a few units of fp32's last place: the order of experts hangs on it."""
    torch.manual_seed(0)
    x = torch.randn(3, 50, 512, device=device) * 30
    norm = nn.RMSNorm(512, eps=1e-6, device=device)
    nn.init.normal_(norm.weight, std=2)
    weight = torch.randn(128, 512, device=device) * scale
    _, narrow, rest = add_norm(x, None, norm, dtype, rest=True)
    parts, scale = router_logits(narrow, rest, weight, split_weight(weight))
    assert len(parts) == (1 if way == "fall-back" else 3)
    assert all(part.shape == (150, 128) and part.dtype == torch.float32 for part in parts)
    normed = rms_norm(x.double(), (512,), norm.weight.double(), 1e-6).flatten(0, 1)
    wanted = linear(normed, weight.double())
    found = scale * sum(parts).double()
    off = (found - wanted).abs().max() / wanted.abs().max()
    assert off < 3e-6, "one fp16 product alone is off by 3e-4"


@torch.no_grad()
def test_without_kernels_the_rest_is_added_before_the_product(dtype=torch.float16):
    torch.manual_seed(0)
    normed, weight = torch.randn(2, 5, 64), torch.randn(8, 64)
    narrow = normed.to(dtype)
    (found,), scale = router_logits(narrow, normed - narrow, weight, None)
    assert scale == 1 and torch.equal(found, linear(normed.flatten(0, 1), weight))

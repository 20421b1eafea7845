import pytest
import torch
from torch.nn.functional import rms_norm

from vqa_utils.ops.heads import HeadNorms, split_heads, split_heads_backward
from vqa_utils.ops.rotary import rotated


def exact_heads(qkv, norms, cos, sin):
    """In fp64, with autograd."""
    heads = qkv.unflatten(-1, (-1, cos.shape[-1]))
    q, k, v = heads.split([norms.q_heads, norms.kv_heads, norms.kv_heads], -2)
    cos, sin = cos.double()[:, :, None], sin.double()[:, :, None]
    d = heads.shape[-1]
    q = rotated(rms_norm(q, (d,), norms.q.double(), norms.eps), cos, sin)
    k = rotated(rms_norm(k, (d,), norms.k.double(), norms.eps), cos, sin)
    repeats = norms.q_heads // norms.kv_heads
    return q, k.repeat_interleave(repeats, -2), v.repeat_interleave(repeats, -2)


@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize(("q_heads", "kv_heads"), [(6, 2), (3, 3)])
def test_heads_and_their_gradient(device, dtype, tolerance, d, heads_first, q_heads, kv_heads):
    torch.manual_seed(0)
    qkv = torch.randn(2, 7, (q_heads + 2 * kv_heads) * d, device=device).to(dtype)
    grads = [torch.randn(2, 7, q_heads, d, device=device).to(dtype) for _ in range(3)]
    if heads_first:  # as sdpa's gradients lie
        grads = [grad.transpose(1, 2).contiguous().transpose(1, 2) for grad in grads]
    q_norm, k_norm = torch.rand(2, d, device=device) + 0.5
    angle = torch.rand(2, 7, d // 2, device=device).repeat(1, 1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    norms = HeadNorms(q_norm, k_norm, 1e-6, q_heads, kv_heads)
    exact = qkv.double().requires_grad_()
    expected = exact_heads(exact, norms, cos, sin)
    (wanted,) = torch.autograd.grad(expected, exact, [grad.double() for grad in grads])
    for found, part in zip(split_heads(qkv, norms, cos, sin), expected, strict=True):
        torch.testing.assert_close(found.double(), part, rtol=tolerance, atol=tolerance)
    found = split_heads_backward(grads, qkv, norms, cos, sin)
    torch.testing.assert_close(found.double(), wanted, rtol=2 * tolerance, atol=2 * tolerance)

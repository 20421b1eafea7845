import torch

from vqa_utils.ops.rotary import rotate, rotated


def test_heads_rotate_in_place_and_their_neighbours_stay(device, dtype):
    torch.manual_seed(0)
    qkv = torch.randn(11, 3, 4, 72, device=device).to(dtype)
    angle = torch.rand(11, 36, device=device).repeat(1, 2)
    before, cos, sin = qkv.double(), angle.cos(), angle.sin()
    rotate(qkv[:, :2].flatten(1, 2), cos, sin)  # q and k of the vision tower
    expected = rotated(before[:, :2], cos.double()[:, None, None], sin.double()[:, None, None])
    torch.testing.assert_close(qkv[:, :2].double(), expected, rtol=2e-3, atol=2e-3)
    assert torch.equal(qkv[:, 2].double(), before[:, 2])


def test_the_negative_angle_rotates_back():
    angles = torch.rand(1, 3, 1, 4, dtype=torch.double).repeat(1, 1, 1, 2)
    x = torch.randn(1, 3, 2, 8, dtype=torch.double)
    found = rotated(x, angles.cos(), angles.sin())
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotated(found, angles.cos(), -angles.sin()), x)

import pytest
import torch
from bases import base_of
from transformers import DynamicCache

from vqa_utils.ops.rotary import rotated


@pytest.fixture
def attention(config):
    return base_of(config, torch.float32).model.language_model.layers[0].self_attn


def inputs(attention, length=7):
    torch.manual_seed(0)
    angles = torch.rand(2, length, attention.head_dim // 2).repeat(1, 1, 2) * 3
    x = torch.randn(2, length, attention.q_proj.in_features, requires_grad=True)
    mask = torch.ones(length, length, dtype=torch.bool).tril().expand(2, 1, length, length).clone()
    mask[0, :, 2:, :2] = False  # left padding
    return x, (angles.cos(), angles.sin()), mask


def test_equal_to_transformers_own_with_gradients(attention):
    x, positions, mask = inputs(attention)
    wanted = type(attention).forward(attention, x, positions, mask)[0]
    found = attention(x, positions, mask)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, x, grad), torch.autograd.grad(wanted, x, grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_without_a_mask_it_is_causal(attention):
    x, positions, _ = inputs(attention)
    wanted = type(attention).forward(attention, x, positions, None)[0]
    torch.testing.assert_close(attention(x, positions, None)[0], wanted, rtol=1e-5, atol=1e-5)


def test_a_loaded_model_uses_it_and_a_cache_is_left_to_transformers(config):
    model = base_of(config)
    assert all("forward" in vars(layer.self_attn) for layer in model.model.language_model.layers)
    tokens = torch.arange(5, 13)[None]
    with torch.no_grad():
        whole = model(input_ids=tokens).logits[:, -1]
        cache = model(
            input_ids=tokens[:, :5], use_cache=True, past_key_values=DynamicCache()
        ).past_key_values
        rest = model(input_ids=tokens[:, 5:], past_key_values=cache, use_cache=True).logits[:, -1]
    torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-4)


def test_a_rotation_comes_back_by_the_negative_angle():
    angles = torch.rand(1, 3, 1, 4, dtype=torch.double).repeat(1, 1, 1, 2)
    x = torch.randn(1, 3, 2, 8, dtype=torch.double)
    found = rotated(x, angles.cos(), angles.sin())
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotated(found, angles.cos(), -angles.sin()), x)

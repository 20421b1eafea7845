import pytest
import torch
from bases import base_of
from transformers import DynamicCache

from vqa_utils.model.fast._attention import as_bias
from vqa_utils.model.fast._shared import one_forward
from vqa_utils.model.fast.table import When, use_fast_forwards


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


def test_attention_without_a_mask_is_causal(attention):
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


def test_a_mask_changed_in_place_is_seen_by_the_next_forward(attention):
    x, positions, mask = inputs(attention)
    with one_forward():
        before = attention(x, positions, mask)[0]
    mask[1, :, 3:, :3] = False
    with one_forward():
        found = attention(x, positions, mask)[0]
    wanted = type(attention).forward(attention, x, positions, mask)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-3)


def test_layers_of_one_forward_share_the_masks_bias():
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    with one_forward():
        bias = as_bias(mask, torch.float32)
        assert as_bias(mask, torch.float32) is bias
        assert as_bias(mask.clone(), torch.float32) is not bias
        assert as_bias(mask, torch.float16).dtype == torch.float16
    with one_forward():
        assert as_bias(mask, torch.float32) is not bias
    assert not vars(mask)


def test_a_forward_that_fails_leaves_nothing_shared():
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    with pytest.raises(ZeroDivisionError), one_forward():
        bias = as_bias(mask, torch.float32)
        1 / 0  # noqa: B018
    assert as_bias(mask, torch.float32) is not bias


def test_attention_is_left_to_kernels_that_plan_for_no_length():
    torch.backends.cuda.enable_cudnn_sdp(True)
    use_fast_forwards(torch.nn.Identity(), When.ON_THE_BASE)  # as any model of this process
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled(), "of a T4"

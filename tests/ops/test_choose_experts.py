import pytest
import torch

from vqa_utils.ops.choose_experts import choose_experts, choose_experts_backward
from vqa_utils.ops.router_logits import Logits


@pytest.mark.parametrize("experts", [8, 128, 200])
def test_the_chosen_experts_and_their_gradient(device, experts):
    torch.manual_seed(0)
    k = 6
    logits = torch.randn(37, experts, device=device) * 4
    grad = torch.randn(37, k, device=device)
    exact = logits.double().requires_grad_()
    values, places = exact.softmax(-1).topk(k)  # as transformers has it
    expected = values / values.sum(-1, keepdim=True)
    (wanted,) = torch.autograd.grad(expected, exact, grad.double())
    weights, index = choose_experts(Logits((logits,)), k)
    assert torch.equal(index, places)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)
    found = choose_experts_backward(grad, weights, index, experts)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_logits_in_parts_are_added(device):
    torch.manual_seed(0)
    side_by_side = torch.randn(37, 2 * 128, device=device)
    parts = (side_by_side[:, :128], side_by_side[:, 128:], torch.randn(37, 128, device=device))
    weights, index = choose_experts(Logits(parts, 0.5), 8)
    wanted, places = choose_experts(Logits(((parts[0] + parts[1] + parts[2]) / 2,)), 8)
    assert torch.equal(index, places)
    torch.testing.assert_close(weights, wanted, rtol=1e-5, atol=1e-6)


def test_equal_logits_choose_different_experts(device):
    weights, index = choose_experts(Logits((torch.zeros(3, 128, device=device),)), 8)
    assert all(len(set(row)) == 8 for row in index.tolist())
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 8))


def test_a_nan_logit_makes_its_tokens_weights_nan(device):
    logits = torch.zeros(3, 128, device=device)
    logits[1, 77] = float("nan")
    weights, index = choose_experts(Logits((logits,)), 8)
    assert weights[1].isnan().all() and not weights[[0, 2]].isnan().any()
    assert index.max() < 128

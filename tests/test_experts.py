import pytest
import torch
from torch import nn
from transformers import Qwen3VLMoeConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from vqa_utils.experts import FrozenExperts, chunks, grouped_product, sort_by_expert


class Dense(nn.Module):
    """What FrozenExperts asks of a module, over weights that are not packed."""

    def __init__(self, experts, at_once):
        super().__init__()
        self.experts, self.num_experts, self.at_once = experts, experts.num_experts, at_once

    def dense(self, name, experts):
        assert experts.stop - experts.start == self.at_once
        return getattr(self.experts, name).detach()[experts]

    def apply_gate(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return self.experts.act_fn(gate) * up


def routed(case, tokens, experts, k):
    scores = torch.rand(tokens, experts)
    if case == "one expert has no token":
        scores[:, 3] = -1
    if case == "all tokens on the same experts":
        scores[:, :k] += 2
    weights, index = scores.softmax(-1).topk(k)
    return (weights / weights.sum(-1, keepdim=True)).detach().requires_grad_(), index


@pytest.mark.parametrize("at_once", [3, 200])
@pytest.mark.parametrize(
    ("case", "tokens", "experts", "k"),
    [
        ("any", 40, 8, 2),
        ("one expert has no token", 40, 8, 2),
        ("all tokens on the same experts", 40, 8, 2),
        ("one token", 1, 8, 2),
        ("many experts", 50, 128, 8),
    ],
)
def test_equal_to_transformers_reference_with_gradients(case, tokens, experts, k, at_once):
    torch.manual_seed(0)
    text = {"hidden_size": 24, "moe_intermediate_size": 20, "num_experts": experts, "hidden_act": "silu"}
    reference = Qwen3VLMoeTextExperts(Qwen3VLMoeConfig(text_config=text).text_config)
    nn.init.normal_(reference.gate_up_proj, std=0.3)
    nn.init.normal_(reference.down_proj, std=0.3)
    reference.config._experts_implementation = "eager"
    x = torch.randn(tokens, 24, requires_grad=True)
    weights, index = routed(case, tokens, experts, k)
    grad = torch.randn(tokens, 24)
    expected = reference(x, index, weights)
    wanted = torch.autograd.grad(expected, (x, weights), grad)
    found = FrozenExperts.apply(x, weights, index, Dense(reference, at_once))
    got = torch.autograd.grad(found, (x, weights), grad)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_sorted_pairs_name_their_tokens():
    order, token, counts = sort_by_expert(torch.tensor([[2, 0], [0, 2], [2, 1]]), 4)
    assert order.tolist() == [1, 2, 5, 0, 3, 4] and token.tolist() == [0, 1, 2, 0, 1, 2] and counts == [2, 1, 3, 0]


def test_each_expert_gets_its_own_matrix():
    rows, weights = torch.randn(5, 3), torch.randn(3, 3, 2)
    expected = torch.cat([rows[:2] @ weights[0], rows[2:] @ weights[2]])
    torch.testing.assert_close(grouped_product(rows, weights, [2, 0, 3]), expected)


def test_chunks_of_experts_with_their_rows():
    found = list(chunks([2, 0, 3, 0, 0, 1, 4], 2))
    assert found == [
        (slice(0, 2), slice(0, 2)),
        (slice(2, 4), slice(2, 5)),
        (slice(4, 6), slice(5, 6)),
        (slice(6, 8), slice(6, 10)),
    ]
    assert list(chunks([0, 0, 5], 2)) == [(slice(2, 4), slice(0, 5))]

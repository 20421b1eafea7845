import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen3VLMoeConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from vqa_utils.model.nf4 import forward as experts
from vqa_utils.model.nf4.forward import frozen_experts
from vqa_utils.ops.expert_slots import Routing


class Dense(nn.Module):
    """What `frozen_experts` asks of a module, over weights that are not packed; counts the experts made dense."""

    def __init__(self, experts, at_once=200, padding_worth=1000):
        super().__init__()
        self.experts, self.num_experts = experts, experts.num_experts
        self.at_once, self.padding_worth, self.made = at_once, padding_worth, []
        self.compute_dtype = torch.float32

    def dequantizer(self, order):
        def dense(experts):
            chosen = order[experts]
            assert len(chosen) <= self.at_once
            self.made.append(len(chosen))
            return tuple(
                getattr(self.experts, name).detach()[chosen]
                for name in ("gate_up_proj", "down_proj")
            )

        return dense

    @property
    def act_fn(self):
        return self.experts.act_fn


def small_experts(count):
    text = {
        "hidden_size": 24,
        "moe_intermediate_size": 20,
        "num_experts": count,
        "hidden_act": "silu",
    }
    reference = Qwen3VLMoeTextExperts(Qwen3VLMoeConfig(text_config=text).text_config)
    nn.init.normal_(reference.gate_up_proj, std=0.3)
    nn.init.normal_(reference.down_proj, std=0.3)
    reference.config._experts_implementation = "eager"
    return reference


def routed(case, tokens, experts, k):
    scores = torch.rand(tokens, experts)
    if case == "one expert has no token":
        scores[:, 3] = -1
    if case == "all tokens on the same experts":
        scores[:, :k] += 2
    weights, index = scores.softmax(-1).topk(k)
    return (weights / weights.sum(-1, keepdim=True)).detach().requires_grad_(), index


@pytest.mark.parametrize(("at_once", "padding_worth"), [(3, 1000), (200, 1000), (200, 0)])
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
def test_equal_to_transformers_reference_with_gradients(
    case, tokens, experts, k, at_once, padding_worth
):
    torch.manual_seed(0)
    reference = small_experts(experts)
    x = torch.randn(tokens, 24, requires_grad=True)
    weights, index = routed(case, tokens, experts, k)
    grad = torch.randn(tokens, 24)
    expected = reference(x, index, weights)
    wanted = torch.autograd.grad(expected, (x, weights), grad)
    found = frozen_experts(x, weights, index, Dense(reference, at_once, padding_worth))
    got = torch.autograd.grad(found, (x, weights), grad)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            frozen_experts(x, weights, index, Dense(reference, at_once)),
            expected,
            rtol=1e-5,
            atol=1e-5,
        )


def test_under_checkpointing_nothing_is_made_dense_for_the_recomputation():
    torch.manual_seed(0)
    module, (weights, index) = Dense(small_experts(8)), routed("any", 40, 8, 2)
    x = torch.randn(40, 24, requires_grad=True)

    def layer(x):
        return x + frozen_experts(x.sin(), weights, index, module)

    plain = torch.autograd.grad(layer(x).sum(), (x, weights))
    module.made.clear()
    y = checkpoint(layer, x, use_reentrant=False)
    forward = list(module.made)
    found = torch.autograd.grad(y.sum(), (x, weights))
    assert len(forward) == len(Routing(index, 8, module.at_once, module.padding_worth).groups)
    assert sorted(module.made) == sorted(2 * forward)  # a forward and a backward, no third time
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_backward_uses_the_forwards_routing(monkeypatch):
    made = []
    monkeypatch.setattr(
        experts, "Routing", lambda *inputs: made.append(Routing(*inputs)) or made[-1]
    )
    module, (weights, index) = Dense(small_experts(8)), routed("any", 40, 8, 2)
    x = torch.randn(40, 24, requires_grad=True)
    checkpoint(
        lambda x: frozen_experts(x.sin(), weights, index, module), x, use_reentrant=False
    ).sum().backward()
    assert len(made) == 1 and x.grad.abs().sum() > 0


@pytest.mark.parametrize("tokens", [1, 3, 40])
@torch.no_grad()
def test_a_first_group_that_was_made_ahead_is_used_once(tokens):
    torch.manual_seed(0)
    module = Dense(small_experts(16), at_once=6, padding_worth=20)
    x, (weights, index) = torch.randn(tokens, 24), routed("any", tokens, 16, 2)
    plain = Routing(index, 16, module.at_once, module.padding_worth)
    wanted = experts.compute(x, weights, plain, module)
    usual = len(module.made)
    module.made.clear()
    ahead = Routing(
        index,
        16,
        module.at_once,
        module.padding_worth,
        lambda order: module.dequantizer(order)(slice(0, 6)),
    )
    torch.testing.assert_close(experts.compute(x, weights, ahead, module), wanted)
    assert len(module.made) == usual and ahead.meanwhile is None
    torch.testing.assert_close(
        experts.compute(x, weights, ahead, module), wanted
    )  # and made again where it is asked again

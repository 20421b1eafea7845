import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen3VLMoeConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from vqa_utils.model.nf4 import forward as experts
from vqa_utils.model.nf4.forward import frozen_experts
from vqa_utils.ops.expert_slots import Chunk, Group, Routing
from vqa_utils.planning.expert_chunks import WORTH_SINCE_AMPERE, split


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


def test_every_pair_has_one_slot():
    index = torch.tensor([[2, 0], [0, 2], [2, 1]])
    routing = Routing(index, 4, at_once=2, padding_worth=0)
    assert routing.order.tolist() == [2, 0, 1, 3]
    assert routing.groups == [
        Group(
            slice(0, 2),
            slice(0, 5),
            (Chunk(slice(0, 1), slice(0, 3)), Chunk(slice(1, 2), slice(3, 5))),
        ),
        Group(slice(2, 3), slice(5, 6), (Chunk(slice(0, 1), slice(0, 1)),)),
    ]
    assert routing.pair.tolist() == [0, 3, 4, 1, 2, 5] and routing.token.tolist() == [
        0,
        1,
        2,
        0,
        1,
        2,
    ]
    assert routing.slot_of_pair.tolist() == [[0, 3], [4, 1], [2, 5]]
    index = torch.repeat_interleave(torch.tensor([10, 9, 8, 7, 6]))[torch.randperm(40)][:, None]
    padded = Routing(index, 5, at_once=5, padding_worth=100)
    assert padded.slots == 60 and padded.pair[padded.slot_of_pair.flatten()].tolist() == list(
        range(40)
    )


@pytest.mark.parametrize(
    ("loads", "at_once", "padding_worth", "expected"),
    [
        ([5] * 9, 3, 5, [(3, 5)] * 3),  # at most so many experts
        (
            [5] * 40,
            12,
            50,
            [(12, 5)] * 3 + [(4, 6)],
        ),  # of one group, also where no group's end is a place to cut by itself
        (
            [9, 8, 2, 2, 1, 1, 1, 0],
            8,
            0.1,
            [(1, 9), (1, 8), (2, 2), (3, 1)],
        ),  # where padding may cost nothing, exact
        (
            [9, 9, 2, 2, 1, 1, 0],
            8,
            3,
            [(2, 9), (4, 2)],
        ),  # two rows of padding cost less than a chunk
        ([7], 8, 3, [(1, 7)]),
        (
            [900, 700, 300, 300, 10],
            4,
            400,
            [(2, 928), (2, 320), (1, 64)],
        ),  # rounded, for a quarter of a chunk's worth at most
        ([0, 0], 8, 5, []),
    ],
)
def test_chunks_weigh_padding_against_launches(loads, at_once, padding_worth, expected):
    assert split(loads, at_once, padding_worth) == expected


def test_sizes_come_again_from_batch_to_batch():
    rng, batches = np.random.default_rng(0), []
    layers = rng.dirichlet(
        np.full(128, 2.0), size=8
    )  # each has its own share of tokens for each expert
    for _ in range(40):
        loads = [np.sort(rng.multinomial(36_000, shares))[::-1] for shares in layers]
        batches.append([size for load in loads for size in split(load, 64, WORTH_SINCE_AMPERE)])
        assert sum(experts * rows for experts, rows in batches[-1]) < 1.5 * 8 * 36_000
    known = {size for batch in batches[:20] for size in batch}
    later = [size for batch in batches[20:] for size in batch]
    assert sum(size not in known for size in later) < 0.1 * len(later)


def test_no_other_cut_is_cheaper():
    loads = [31, 17, 16, 9, 9, 8, 3, 1]
    cost = {
        cut: sum(
            (end - start) * loads[start] + 6 for start, end in itertools.pairwise((0, *cut, 8))
        )
        for size in range(8)
        for cut in itertools.combinations(range(1, 8), size)
        if all(
            (end - start) * loads[start] <= sum(loads) // 2
            for start, end in itertools.pairwise((0, *cut, 8))
        )
    }
    assert sum(experts * rows + 6 for experts, rows in split(loads, 8, 6)) == min(cost.values())

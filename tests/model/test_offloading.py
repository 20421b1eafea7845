from types import SimpleNamespace

import pytest
import torch
from bases import base_of, lora_on
from torch import nn

from vqa_utils.model.loading import load_base
from vqa_utils.model.nf4._offloading import ExpertOffloader
from vqa_utils.model.nf4.experts import NF4Experts

LAYERS = [f"model.language_model.layers.{number}" for number in (0, 2, 3)]


def expert_layers(model):
    """Each layer's experts, by the layer's name."""
    return {
        name.removesuffix(".mlp.experts"): module
        for name, module in model.named_modules()
        if isinstance(module, NF4Experts)
    }


def gradients(base, config, batch):
    tuned = lora_on(base, config).train()
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:  # zero at the start, which would leave lora_A without a gradient
            nn.init.normal_(parameter, std=0.05)
    torch.manual_seed(0)
    tuned(
        **{name: value for name, value in batch.items() if name != "labels"}
    ).logits.square().mean().backward()
    return {
        name: parameter.grad
        for name, parameter in tuned.named_parameters()
        if parameter.grad is not None
    }


def test_offloaded_experts_compute_the_same_forward_and_backward(config, encoder, challenge):
    batch = encoder.examples(challenge.train.head(4).to_dict("records"))
    plan = SimpleNamespace(device_map={"": "cpu"}, offloaded_layers=LAYERS, experts_at_once=64)
    base = load_base(config, plan)
    experts = expert_layers(base)
    in_host_memory = [name for name, module in experts.items() if module.host is not None]
    assert in_host_memory == LAYERS
    for name in LAYERS:
        assert all(parameter.numel() == 0 for parameter in experts[name].parameters())
    found = gradients(base, config, batch)
    wanted = gradients(base_of(config), config, batch)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0)


def test_so_many_experts_are_dense_at_a_time_as_the_plan_says(config):
    plan = SimpleNamespace(device_map={"": "cpu"}, offloaded_layers=[], experts_at_once=3)
    layers = expert_layers(load_base(config, plan)).values()
    assert layers and {module.at_once for module in layers} == {3}


def test_no_experts_are_offloaded_without_a_plan(config):
    assert all(module.host is None for module in expert_layers(base_of(config)).values())


@pytest.fixture
def offloader():
    layers = [{"packed": torch.full((4,), number, dtype=torch.uint8)} for number in range(5)]
    return ExpertOffloader(layers, torch.device("cpu")), layers


def test_each_layer_is_copied_once_there_and_back(offloader):
    offloader, layers = offloader
    copied, real = [], offloader._copy

    def watched(number):
        before = list(offloader.holds)
        real(number)
        copied.extend(number for slot, held in enumerate(offloader.holds) if held != before[slot])

    offloader._copy = watched
    for number in [0, 1, 2, 3, 4]:
        assert offloader.fetch(layers[number])["packed"].tolist() == [number] * 4
    assert copied == [0, 1, 2, 3, 4]  # each once: the next while this one computes
    copied.clear()
    for number in [4, 4, 3, 3, 2, 2, 1, 1, 0, 0]:  # recomputed, then backward
        assert offloader.fetch(layers[number])["packed"].tolist() == [number] * 4
    assert copied == [2, 1, 0]  # 4 and 3 were still there
    copied.clear()
    assert offloader.fetch(layers[0])["packed"].tolist() == [0] * 4 and copied == []


def test_the_next_layer_is_there_before_it_is_asked_for(offloader):
    offloader, layers = offloader
    for number, following in [(0, 1), (1, 2), (2, 3), (3, 4), (4, 3), (3, 2), (2, 1), (1, 0)]:
        offloader.fetch(layers[number])
        assert set(offloader.holds) == {number, following}, number


def test_a_jump_is_served_too(offloader):
    offloader, layers = offloader
    for number in [3, 0, 4, 1]:
        assert offloader.fetch(layers[number])["packed"].tolist() == [number] * 4

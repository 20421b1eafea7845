from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vqa_utils.model import loading as model
from vqa_utils.model.loading import add_lora, load_base
from vqa_utils.model.nf4._offloading import ExpertOffloader
from vqa_utils.model.nf4.experts import NF4Experts

LAYERS = [f"model.language_model.layers.{number}" for number in (0, 2, 3)]


def gradients(base, config, batch):
    tuned = add_lora(base, config).train()
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


def test_streamed_experts_compute_the_same_forward_and_backward(
    config, encoder, challenge, monkeypatch
):
    batch = encoder.examples(challenge.train.head(4).to_dict("records"))
    monkeypatch.setattr(
        model,
        "memory_plan",
        lambda config: SimpleNamespace(device_map={"": "cpu"}, offloaded_layers=LAYERS),
    )
    streamed = load_base(config)
    monkeypatch.undo()
    kept = {
        name: module.host
        for name, module in streamed.named_modules()
        if isinstance(module, NF4Experts)
    }
    assert [
        name.removesuffix(".mlp.experts") for name, host in kept.items() if host is not None
    ] == LAYERS
    assert all(
        p.numel() == 0
        for name, p in streamed.named_parameters()
        if name.startswith(tuple(f"{n}.mlp.exp" for n in LAYERS))
    )
    found, wanted = gradients(streamed, config, batch), gradients(load_base(config), config, batch)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0)


def test_nothing_is_streamed_unless_it_is_planned(config):
    assert all(
        module.host is None
        for module in load_base(config).modules()
        if isinstance(module, NF4Experts)
    )


@pytest.fixture
def stream():
    layers = [{"packed": torch.full((4,), number, dtype=torch.uint8)} for number in range(5)]
    return ExpertOffloader(layers, torch.device("cpu")), layers


def test_there_and_back_again_each_layer_is_copied_in_time(stream):
    stream, layers = stream
    copied, real = [], stream._copy

    def watched(number):
        before = list(stream.holds)
        real(number)
        copied.extend(number for slot, held in enumerate(stream.holds) if held != before[slot])

    stream._copy = watched
    for number in [0, 1, 2, 3, 4]:
        assert stream.fetch(layers[number])["packed"].tolist() == [number] * 4
    assert copied == [0, 1, 2, 3, 4]  # each once: the next while this one computes
    copied.clear()
    for number in [4, 4, 3, 3, 2, 2, 1, 1, 0, 0]:  # recomputed, then backward
        assert stream.fetch(layers[number])["packed"].tolist() == [number] * 4
    assert copied == [2, 1, 0]  # 4 and 3 were still there
    copied.clear()
    assert stream.fetch(layers[0])["packed"].tolist() == [0] * 4 and copied == []


def test_the_next_layer_is_there_before_it_is_asked_for(stream):
    stream, layers = stream
    for number, following in [(0, 1), (1, 2), (2, 3), (3, 4), (4, 3), (3, 2), (2, 1), (1, 0)]:
        stream.fetch(layers[number])
        assert set(stream.holds) == {number, following}, number


def test_a_jump_is_served_too(stream):
    stream, layers = stream
    for number in [3, 0, 4, 1]:
        assert stream.fetch(layers[number])["packed"].tolist() == [number] * 4

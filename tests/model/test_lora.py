import bitsandbytes as bnb
import pytest
import torch
from bases import adapted_layers, base_with_lora
from torch import nn

from vqa_utils.model.fast._lora import project
from vqa_utils.model.fast.table import When, use_fast_forwards
from vqa_utils.ops.dropout import dropout


def outputs_and_gradients(model, x):
    torch.manual_seed(1)  # of the dropout
    y = model(x)
    weights = [p for p in model.parameters() if p.requires_grad]
    return y, *torch.autograd.grad(
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), [x, *weights]
    )


class SameMask(nn.Module):
    """Dropout by the mask that `ops.dropout` draws for this seed."""

    def forward(self, x):
        return x * dropout(torch.ones_like(x), 0.3, 7)


@pytest.mark.parametrize(("p", "bias"), [(0.0, False), (0.0, True), (0.3, False)])
def test_equal_to_pefts_own_with_gradients(p, bias, monkeypatch):
    monkeypatch.setattr("vqa_utils.model.fast._projection.draw_seed", lambda: 7)
    model, x = adapted_layers(p, bias), torch.randn(2, 5, 128, requires_grad=True)
    own = model.base_model.model[0].lora_dropout
    if p:
        own["default"], of_peft = SameMask(), own["default"]
    wanted = outputs_and_gradients(model, x)
    if p:
        own["default"] = of_peft
    use_fast_forwards(model, When.ON_THE_ADAPTED_MODEL)
    assert "forward" in vars(model.base_model.model[0])
    found = outputs_and_gradients(model, x)
    assert len(found) == 4
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_layers_with_one_input_equal_each_alone():
    model, x = adapted_layers(0.0, True, (192, 64, 64)), torch.randn(2, 5, 128, requires_grad=True)
    layers, weights = model.base_model.model, [p for p in model.parameters() if p.requires_grad]

    def found(outputs):
        loss = sum(
            (y * torch.linspace(-1, number, y.shape[-1])).sum() for number, y in enumerate(outputs)
        )
        return *outputs, *torch.autograd.grad(loss, [x, *weights])

    wanted = found([layer(x) for layer in layers])
    use_fast_forwards(model, When.ON_THE_ADAPTED_MODEL)
    got = found(project(layers, x).split([192, 64, 64], -1))
    assert len(got) == 3 + 1 + 6
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_layers_with_one_input_drop_the_same_of_it():
    model, x = adapted_layers(0.5, False, (64, 64)), torch.randn(4, 128)
    first, second = model.base_model.model
    second.base_layer.weight = first.base_layer.weight
    second.lora_A, second.lora_B = first.lora_A, first.lora_B
    use_fast_forwards(model, When.ON_THE_ADAPTED_MODEL)
    assert torch.equal(*project((first, second), x).chunk(2, -1))
    assert not torch.equal(first(x), second(x))


def test_the_scales_are_dense_and_the_same():
    model = adapted_layers(0.0, False)
    base = model.base_model.model[0].base_layer
    nested = bnb.nn.Params4bit(
        torch.randn(192, 128), requires_grad=False, quant_type="nf4", compress_statistics=True
    ).to("cpu")
    base.weight = nested
    before = base(torch.eye(128))
    assert base.weight.quant_state.nested
    use_fast_forwards(model, When.ON_THE_ADAPTED_MODEL)
    assert not base.weight.quant_state.nested
    torch.testing.assert_close(base(torch.eye(128)), before)


def test_the_packed_weights_are_the_layers_own():
    """A lent base's are mapped by each fold: a copy would be each fold's own."""
    model = adapted_layers(0.0, False, (192, 64, 64))
    layers = tuple(model.base_model.model)
    before = [layer.base_layer.weight.data_ptr() for layer in layers]
    use_fast_forwards(model, When.ON_THE_ADAPTED_MODEL)
    project(layers, torch.randn(4, 128))
    projection = layers[0].projections[layers]
    assert [part.weights.data_ptr() for part in projection.packed] == before
    assert [layer.base_layer.weight.data_ptr() for layer in layers] == before


def test_without_gradients_the_update_of_many_rows_is_in_the_matrix():
    model = adapted_layers(0.3, True, (192, 64)).eval()
    use_fast_forwards(model, When.ON_THE_ADAPTED_MODEL)
    layers, few = model.base_model.model, torch.randn(5, 128)
    many = torch.cat([few, torch.randn(295, 128)])
    with torch.no_grad():
        wanted, found = project(layers, few), project(layers, many)[:5]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
        assert not torch.equal(
            project(layers, many)[:5], torch.cat([layer.base_layer(few) for layer in layers], -1)
        )
        torch.testing.assert_close(
            project(layers, many)[:5], found, rtol=0, atol=0
        )  # it is added once


def test_without_the_adapter_gradients_are_the_bases():
    model, x = adapted_layers(0.3, True), torch.randn(3, 128, requires_grad=True)
    use_fast_forwards(model, When.ON_THE_ADAPTED_MODEL)
    base = model.base_model.model[0].base_layer
    wanted = torch.autograd.grad(base(x).square().sum(), x)
    with model.disable_adapter():
        found = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def test_without_the_adapter_the_output_is_the_bases():
    model, x = adapted_layers(0.0, False), torch.randn(3, 128)
    use_fast_forwards(model, When.ON_THE_ADAPTED_MODEL)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), model.base_model.model[0].base_layer(x))
    assert (model(x) - model.base_model.model[0].base_layer(x)).abs().max() > 0.1


def test_all_adapted_layers_of_a_loaded_model_use_it(config):
    model = base_with_lora(config)
    layers = [
        module for name, module in model.named_modules() if name.endswith(config.target_modules)
    ]
    adapted = [module for module in layers if hasattr(module, "lora_A")]
    assert len(adapted) == 4 * config_layers(model) and all(
        "forward" in vars(module) for module in adapted
    )


def config_layers(model):
    return model.config.get_text_config().num_hidden_layers

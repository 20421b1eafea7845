import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from vqa_utils.model.fast._lora import project, use_fast_lora
from vqa_utils.model.loading import add_lora, load_base
from vqa_utils.ops.dropout import dropout
from vqa_utils.training._callbacks import SeenSteps


def adapted(dropout, bias, widths=(192,)):
    """Layers from 128 features to each of the widths."""
    torch.manual_seed(0)
    base = nn.Sequential(
        *(bnb.nn.Linear4bit(128, width, bias=bias, compute_dtype=torch.float32) for width in widths)
    )
    for layer in base:
        layer.support_avx512bf16_for_cpu = False
        weight = torch.randn(layer.out_features, 128) * 0.1
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to("cpu")
    base.is_loaded_in_4bit = True  # what tells PEFT
    targets = [str(number) for number in range(len(widths))]
    model = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=targets)
    )
    for layer in model.base_model.model:
        nn.init.normal_(layer.lora_B["default"].weight)
    return model.train()


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
    monkeypatch.setattr("vqa_utils.model.fast._lora.draw_seed", lambda: 7)
    model, x = adapted(p, bias), torch.randn(2, 5, 128, requires_grad=True)
    own = model.base_model.model[0].lora_dropout
    if p:
        own["default"], of_peft = SameMask(), own["default"]
    wanted = outputs_and_gradients(model, x)
    if p:
        own["default"] = of_peft
    use_fast_lora(model)
    assert "forward" in vars(model.base_model.model[0])
    found = outputs_and_gradients(model, x)
    assert len(found) == 4
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_layers_with_one_input_equal_each_alone():
    model, x = adapted(0.0, True, (192, 64, 64)), torch.randn(2, 5, 128, requires_grad=True)
    layers, weights = model.base_model.model, [p for p in model.parameters() if p.requires_grad]

    def found(outputs):
        loss = sum(
            (y * torch.linspace(-1, number, y.shape[-1])).sum() for number, y in enumerate(outputs)
        )
        return *outputs, *torch.autograd.grad(loss, [x, *weights])

    wanted = found([layer(x) for layer in layers])
    use_fast_lora(model)
    got = found(project(layers, x).split([192, 64, 64], -1))
    assert len(got) == 3 + 1 + 6
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_layers_with_one_input_drop_the_same_of_it():
    model, x = adapted(0.5, False, (64, 64)), torch.randn(4, 128)
    first, second = model.base_model.model
    second.base_layer.weight = first.base_layer.weight
    second.lora_A, second.lora_B = first.lora_A, first.lora_B
    use_fast_lora(model)
    assert torch.equal(*project((first, second), x).chunk(2, -1))
    assert not torch.equal(first(x), second(x))


def test_an_optimizer_step_is_seen(monkeypatch):
    model, x = adapted(0.0, False), torch.randn(3, 128)
    use_fast_lora(model)
    before = model(x)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0).step()
    assert torch.equal(model(x), before)  # no gradient yet
    before.sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0).step()
    after = model(x)
    del model.base_model.model[0].forward
    torch.testing.assert_close(after, model(x), rtol=1e-5, atol=1e-4)
    assert (after - before).abs().max() > 0.1


def test_a_step_that_autograd_does_not_know_of_is_seen_once_it_is_told():
    model, x = adapted(0.0, False), torch.randn(3, 128)
    use_fast_lora(model)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer, before = bnb.optim.AdamW(learning, lr=0.1), model(x)
    before.sum().backward()
    versions = [p._version for p in learning]
    optimizer.step()
    assert [p._version for p in learning] == versions  # the kind of optimizer that this is about
    SeenSteps().on_optimizer_step(None, None, None, model=model)
    after = model(x)
    del model.base_model.model[0].forward
    torch.testing.assert_close(after, model(x), rtol=1e-5, atol=1e-4)
    assert (after - before).abs().max() > 0.1


def test_replaced_weights_are_seen():
    model, x = adapted(0.0, False), torch.randn(3, 128)
    use_fast_lora(model)
    layer, before = model.base_model.model[0].lora_B["default"], model(x)
    for scale in (2.0, 3.0, 4.0):
        layer.weight = nn.Parameter(torch.full_like(layer.weight, scale))
        found = model(x)
        assert not torch.equal(found, before)
        before = found
    layer.weight.data = torch.zeros_like(layer.weight)
    torch.testing.assert_close(model(x), model.base_model.model[0].base_layer(x))


def test_the_scales_are_dense_and_the_same():
    model = adapted(0.0, False)
    base = model.base_model.model[0].base_layer
    nested = bnb.nn.Params4bit(
        torch.randn(192, 128), requires_grad=False, quant_type="nf4", compress_statistics=True
    ).to("cpu")
    base.weight = nested
    before = base(torch.eye(128))
    assert base.weight.quant_state.nested
    use_fast_lora(model)
    assert not base.weight.quant_state.nested
    torch.testing.assert_close(base(torch.eye(128)), before)


def test_where_nothing_learns_the_update_is_in_the_matrix_of_many_rows():
    model = adapted(0.3, True, (192, 64)).eval()
    use_fast_lora(model)
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
    model, x = adapted(0.3, True), torch.randn(3, 128, requires_grad=True)
    use_fast_lora(model)
    base = model.base_model.model[0].base_layer
    wanted = torch.autograd.grad(base(x).square().sum(), x)
    with model.disable_adapter():
        found = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def test_without_the_adapter_it_is_the_base():
    model, x = adapted(0.0, False), torch.randn(3, 128)
    use_fast_lora(model)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), model.base_model.model[0].base_layer(x))
    assert (model(x) - model.base_model.model[0].base_layer(x)).abs().max() > 0.1


def test_all_adapted_layers_of_a_loaded_model_use_it(config):
    model = add_lora(load_base(config), config)
    layers = [
        module for name, module in model.named_modules() if name.endswith(config.target_modules)
    ]
    adapted = [module for module in layers if hasattr(module, "lora_A")]
    assert len(adapted) == 4 * config_layers(model) and all(
        "forward" in vars(module) for module in adapted
    )


def config_layers(model):
    return model.config.get_text_config().num_hidden_layers

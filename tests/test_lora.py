import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from vqa_utils.lora import use_lean_lora
from vqa_utils.model import add_lora, load_base


def adapted(dropout, bias):
    torch.manual_seed(0)
    base = nn.Sequential(bnb.nn.Linear4bit(128, 192, bias=bias, quant_type="nf4", compute_dtype=torch.float32))
    base[0].support_avx512bf16_for_cpu = False
    base.to("cpu")
    if base[0].weight.quant_state is None:
        base[0].weight = bnb.nn.Params4bit(torch.randn(192, 128) * 0.1, requires_grad=False, quant_type="nf4").to("cpu")
    base.is_loaded_in_4bit = True  # what tells PEFT
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["0"]))
    nn.init.normal_(model.base_model.model[0].lora_B["default"].weight)
    return model.train()


def outputs_and_gradients(model, x):
    torch.manual_seed(1)  # of the dropout
    y = model(x)
    weights = [p for p in model.parameters() if p.requires_grad]
    return y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), [x, *weights])


@pytest.mark.parametrize(("dropout", "bias"), [(0.0, False), (0.0, True), (0.3, False)])
def test_equal_to_pefts_own_with_gradients(dropout, bias):
    model, x = adapted(dropout, bias), torch.randn(2, 5, 128, requires_grad=True)
    wanted = outputs_and_gradients(model, x)
    use_lean_lora(model)
    assert "forward" in vars(model.base_model.model[0])
    found = outputs_and_gradients(model, x)
    assert len(found) == 4
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_an_optimizer_step_is_seen(monkeypatch):
    model, x = adapted(0.0, False), torch.randn(3, 128)
    use_lean_lora(model)
    before = model(x)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0).step()
    assert torch.equal(model(x), before)  # no gradient yet
    before.sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0).step()
    after = model(x)
    del model.base_model.model[0].forward
    torch.testing.assert_close(after, model(x), rtol=1e-5, atol=1e-4)
    assert (after - before).abs().max() > 0.1


def test_replaced_weights_are_seen():
    model, x = adapted(0.0, False), torch.randn(3, 128)
    use_lean_lora(model)
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
    nested = bnb.nn.Params4bit(torch.randn(192, 128), requires_grad=False, quant_type="nf4", compress_statistics=True).to("cpu")
    base.weight = nested
    before = base(torch.eye(128))
    assert base.weight.quant_state.nested
    use_lean_lora(model)
    assert not base.weight.quant_state.nested
    torch.testing.assert_close(base(torch.eye(128)), before)


def test_without_the_adapter_it_is_the_base():
    model, x = adapted(0.0, False), torch.randn(3, 128)
    use_lean_lora(model)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), model.base_model.model[0].base_layer(x))
    assert (model(x) - model.base_model.model[0].base_layer(x)).abs().max() > 0.1


def test_all_adapted_layers_of_a_loaded_model_use_it(config):
    model = add_lora(load_base(config), config)
    layers = [module for name, module in model.named_modules() if name.endswith(config.target_modules)]
    adapted = [module for module in layers if hasattr(module, "lora_A")]
    assert len(adapted) == 4 * config_layers(model) and all("forward" in vars(module) for module in adapted)


def config_layers(model):
    return model.config.get_text_config().num_hidden_layers

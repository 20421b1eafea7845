import bitsandbytes as bnb
import pytest
import torch
from bases import base_with_lora
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn

from vqa_utils.model.fast._lora import forget_copies, project
from vqa_utils.model.fast.table import When, use_fast_forwards
from vqa_utils.ops.dropout import dropout


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
    monkeypatch.setattr("vqa_utils.model.fast._projection.draw_seed", lambda: 7)
    model, x = adapted(p, bias), torch.randn(2, 5, 128, requires_grad=True)
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
    model, x = adapted(0.0, True, (192, 64, 64)), torch.randn(2, 5, 128, requires_grad=True)
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
    model, x = adapted(0.5, False, (64, 64)), torch.randn(4, 128)
    first, second = model.base_model.model
    second.base_layer.weight = first.base_layer.weight
    second.lora_A, second.lora_B = first.lora_A, first.lora_B
    use_fast_forwards(model, When.ON_THE_ADAPTED_MODEL)
    assert torch.equal(*project((first, second), x).chunk(2, -1))
    assert not torch.equal(first(x), second(x))


def several_adapters():
    """Three layers with one input and two adapters, in fast forwards."""
    model = adapted(0.0, True, (192, 64, 64))
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=8, target_modules=["0", "1", "2"]))
    for layer in model.base_model.model:
        nn.init.normal_(layer.lora_B["other"].weight)
    use_fast_forwards(model, When.ON_THE_ADAPTED_MODEL)
    return model


def assert_as_pefts_own(model):
    """Side by side and each alone, with and without gradients, after whatever was done to the model."""
    layers, x = tuple(model.base_model.model), torch.randn(3, 128)
    wanted = [type(layer).forward(layer, x) for layer in layers]
    for learns in (True, False):
        with torch.set_grad_enabled(learns):
            together = project(layers, x).split([192, 64, 64], -1)
            alone = [layer(x) for layer in layers]
        for found in (together, alone):
            torch.testing.assert_close(list(found), wanted, rtol=1e-4, atol=1e-3)


def optimizer_step(make):
    def step(model):
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in learning:
            parameter.grad = torch.randn_like(parameter)
        make(learning, lr=0.1).step()

    return step


def new_state(model):
    state = get_peft_model_state_dict(model, adapter_name=model.active_adapter)
    return {name: torch.randn_like(value) for name, value in state.items()}


def load_state(model):
    set_peft_model_state_dict(model, new_state(model), model.active_adapter)


def load_by_replacing_parameters(model):
    set_peft_model_state_dict(model, new_state(model), model.active_adapter, low_cpu_mem_usage=True)


def load_into_one_layer(model):
    layer, name = model.base_model.model[1], f"lora_A.{model.active_adapter}.weight"
    layer.load_state_dict({name: torch.randn_like(layer.state_dict()[name])}, strict=False)


def replace_a_parameter(model):
    for adapters in (layer.lora_B for layer in model.base_model.model):
        for module in adapters.values():
            module.weight = nn.Parameter(torch.randn_like(module.weight))


def switch(model):
    model.set_adapter("other" if model.active_adapter == "default" else "default")


def merge_and_unmerge(model):
    model.merge_adapter()
    assert_as_pefts_own(model)
    model.unmerge_adapter()


def merge_and_unmerge_unseen(model):
    model.merge_adapter()
    model.unmerge_adapter()


def without_the_adapter(model):
    with model.disable_adapter():
        assert_as_pefts_own(model)


def scale(model):
    for layer in model.base_model.model:
        layer.scale_layer(1.5)


EVENTS = [
    nn.Module.train,
    nn.Module.eval,
    optimizer_step(torch.optim.SGD),
    optimizer_step(bnb.optim.AdamW),  # writes without a new version in autograd's eyes
    load_state,
    load_by_replacing_parameters,
    load_into_one_layer,
    replace_a_parameter,
    switch,
    merge_and_unmerge,
    merge_and_unmerge_unseen,
    without_the_adapter,
    scale,
]


@pytest.mark.filterwarnings("ignore:.*rounding errors", "ignore:.*erge")
@pytest.mark.parametrize("first", EVENTS)
@pytest.mark.slow
def test_no_copy_is_stale_after_any_two_events(first):
    for second in EVENTS:
        model = several_adapters()
        assert_as_pefts_own(model)
        for event in (first, second, first):
            event(model)
            assert_as_pefts_own(model)


def test_bitsandbytes_steps_leave_no_trace_in_autograds_versions():
    model = adapted(0.0, False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    versions = [parameter._version for parameter in learning]
    optimizer_step(bnb.optim.AdamW)(model)
    assert [parameter._version for parameter in learning] == versions


def test_a_change_by_hand_is_seen_once_the_copies_are_forgotten():
    model = several_adapters()
    assert_as_pefts_own(model)
    for layer in model.base_model.model:
        layer.lora_B["default"].weight.data = torch.zeros_like(layer.lora_B["default"].weight)
        forget_copies(layer)
    assert_as_pefts_own(model)


def test_a_backward_uses_the_adapter_of_its_forward():
    model, x = several_adapters(), torch.randn(3, 128)
    layers = tuple(model.base_model.model)
    of_default = [layer.lora_A["default"].weight for layer in layers]
    wanted = torch.autograd.grad(project(layers, x).sum(), of_default)
    y = project(layers, x).sum()
    model.set_adapter("other")
    for parameter in of_default:
        parameter.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(y, of_default), wanted)


def test_copies_are_made_once_between_two_steps(monkeypatch):
    model, x = several_adapters(), torch.randn(3, 128)
    layers = tuple(model.base_model.model)
    made, block_diag = [], torch.block_diag
    monkeypatch.setattr(torch, "block_diag", lambda *parts: made.append(1) or block_diag(*parts))
    for steps in (1, 2):
        for _ in range(3):
            model.train()
            project(layers, x).sum().backward()
            model.eval()
            with torch.no_grad():
                project(layers, x)
        assert len(made) == steps
        optimizer_step(torch.optim.SGD)(model)


def test_the_scales_are_dense_and_the_same():
    model = adapted(0.0, False)
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


def test_without_gradients_the_update_of_many_rows_is_in_the_matrix():
    model = adapted(0.3, True, (192, 64)).eval()
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
    model, x = adapted(0.3, True), torch.randn(3, 128, requires_grad=True)
    use_fast_forwards(model, When.ON_THE_ADAPTED_MODEL)
    base = model.base_model.model[0].base_layer
    wanted = torch.autograd.grad(base(x).square().sum(), x)
    with model.disable_adapter():
        found = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def test_without_the_adapter_the_output_is_the_bases():
    model, x = adapted(0.0, False), torch.randn(3, 128)
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

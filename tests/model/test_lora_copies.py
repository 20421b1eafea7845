"""The copies that fast LoRA keeps of its matrices: never stale, made once a step."""

import bitsandbytes as bnb
import pytest
import torch
from bases import adapted_layers
from peft import (
    LoraConfig,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn

from vqa_utils.model.fast._lora import forget_copies, project
from vqa_utils.model.fast.table import When, use_fast_forwards


def several_adapters():
    """Three layers with one input and two adapters, in fast forwards."""
    model = adapted_layers(0.0, True, (192, 64, 64))
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
    model = adapted_layers(0.0, False)
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

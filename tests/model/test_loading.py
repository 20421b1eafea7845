import dataclasses

import pytest
import torch
from bases import base_of, base_with_lora, lora_on

from vqa_utils.artifacts.files import ArtifactError
from vqa_utils.artifacts.paths import CONFIG_BESIDE_ADAPTER
from vqa_utils.config import from_dict
from vqa_utils.model.adapter import enable_checkpointing, load_adapter, save_adapter
from vqa_utils.model.loading import load_base
from vqa_utils.model.loading_check import LoadError
from vqa_utils.planning.gpu_plan import GpuPlan
from vqa_utils.planning.machine.gpus import T4
from vqa_utils.planning.plan import Plan, memory_plan
from vqa_utils.training.fold import trainable_parameters


def test_lora_is_on_the_language_models_attention_alone(config):
    model = base_with_lora(config)
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("language_model" in name and "lora_" in name for name in learning)
    assert {name.split(".lora_")[0].split(".")[-1] for name in learning} == set(
        config.target_modules
    )
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    # r * (in + out) for q, k, v, o of 4 layers of width 256 with 4 of 8 heads for keys and values
    assert trainable_parameters(model) == 4 * 8 * (2 * (256 + 256) + 2 * (256 + 128))


def test_the_vision_tower_is_no_target_even_where_the_name_matches(config):
    with pytest.raises(
        ValueError,
        match=r"target_modules: .*\bqkv",
    ):
        lora_on(base_of(config), dataclasses.replace(config, target_modules=("q_proj", "qkv")))


def test_the_backward_ends_at_the_language_model(config, encoder, challenge):
    config = dataclasses.replace(config, use_gradient_checkpointing=True)
    model = base_with_lora(config).train()
    seen = {}
    for name, module in model.named_modules():
        if name.endswith(
            (
                ".visual",
                "language_model.embed_tokens",
                "language_model.layers.0",
                "language_model.layers.1",
            )
        ):
            module.register_forward_hook(
                lambda m, a, out, name=name: seen.update({name.split("model.")[-1]: out})
            )
    batch = encoder.examples(challenge.train.head(2).to_dict("records"))
    model(**{name: value for name, value in batch.items() if name != "labels"})
    assert not seen["visual"][0].requires_grad and not seen["embed_tokens"].requires_grad
    assert seen["layers.0"].requires_grad and seen["layers.1"].requires_grad
    kept = {
        name: module.gradient_checkpointing
        for name, module in model.named_modules()
        if hasattr(module, "gradient_checkpointing")
    }
    in_language_model, layers = (
        {name for name in kept if "language_model" in name},
        model.get_decoder().layers,
    )
    assert (
        {name for name, on in kept.items() if on}
        == {name for name in in_language_model if ".layers." not in name}
        != set()
    )
    assert all(layer.is_checkpointed for layer in layers)  # by their own backward


@pytest.mark.parametrize(
    ("setting", "kept", "recomputed"),
    [
        ("auto", (), {0, 1, 2, 3}),
        ("auto", (2, 3), {0, 1}),
        (True, (), {0, 1, 2, 3}),
        (False, (0, 1, 2, 3), set()),
    ],
)
def test_layers_are_recomputed_unless_the_plan_keeps_them(config, setting, kept, recomputed):
    plan = Plan(
        (
            GpuPlan(
                1,
                (),
                {},
                {},
                {},
                uncheckpointed_layers=tuple(f"model.language_model.layers.{n}" for n in kept),
            ),
        )
    )
    base = base_of(config)
    config = dataclasses.replace(config, use_gradient_checkpointing=setting)
    enable_checkpointing(base, config, plan)
    found = {
        n
        for n, layer in enumerate(base.model.language_model.layers)
        if layer.gradient_checkpointing
    }
    assert found == recomputed


def test_a_cpu_keeps_every_layer(config):
    tuned = base_with_lora(config)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in tuned.modules())


def test_the_same_seed_starts_from_the_same_adapter(config):
    first, again = (
        {n: p.clone() for n, p in base_with_lora(config).named_parameters() if "lora_A" in n}
        for _ in range(2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_an_adapter_comes_back_with_the_settings_it_was_trained_with(
    config, encoder, challenge, tmp_path
):
    config = dataclasses.replace(config, lora_r=3)
    model = base_with_lora(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_adapter(model, config, tmp_path / "adapter")
    assert {f.name for f in (tmp_path / "adapter").iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        CONFIG_BESIDE_ADAPTER,
    }
    loaded, _, found = load_adapter(tmp_path / "adapter", config)
    assert found == config == from_dict(dataclasses.asdict(config))
    batch = encoder.questions(challenge.test.head(2).to_dict("records"))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model.eval()(**batch).logits)


def test_a_missing_adapter_names_the_notebook_to_run(config, tmp_path):
    with pytest.raises(ArtifactError, match="03_train_fold"):
        load_adapter(tmp_path, config)


def test_loading_twice_shares_nothing(config):
    first, second = base_of(config), base_of(config)
    pointers = {p.data_ptr() for p in first.parameters()}
    assert not any(p.data_ptr() in pointers for p in second.parameters())


def test_an_unquantised_base_is_the_checkpoint_itself(config):
    model = base_of(dataclasses.replace(config, quantization="none"))
    assert not any(p.dtype == torch.uint8 for p in model.parameters())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch can use a GPU")
def test_a_plan_for_gpus_that_torch_cannot_use_is_refused(config):
    plan = memory_plan(config, [T4, T4])
    with pytest.raises(LoadError, match=r"2 planned GPUs.*CUDA_VISIBLE_DEVICES"):
        load_base(config, plan)

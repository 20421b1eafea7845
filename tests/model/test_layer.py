"""A decoder layer as one node against transformers' own, in fp32: the demo's mixture, and a dense model."""

import contextlib
import dataclasses
import gc

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from bases import base_of, base_with_lora, lora_on
from families import qwen3_vl
from torch import nn
from transformers import DynamicCache

from vqa_utils.artifacts.places import portable
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.fast import _layer as fast
from vqa_utils.model.fast._projection import Projection
from vqa_utils.model.fast._shared import one_forward
from vqa_utils.model.loading import load_processor
from vqa_utils.planning import memory

pytestmark = pytest.mark.slow

DROPOUT = 0.25


@pytest.fixture(params=["mixture", "dense", "dense in chunks"])
def settings(request, config, processor, tmp_path, monkeypatch):
    """Settings of the demo's base, or of a new small dense Qwen3-VL."""
    if request.param == "mixture":
        return dataclasses.replace(config, lora_dropout=0.0)
    sizes = {}
    if request.param == "dense in chunks":
        monkeypatch.setattr(memory, "DENSE_AT_ONCE", 2**15)
        sizes = {"hidden_size": 256, "intermediate_size": 512}
        assert memory.chunks_of_rows(512, 256) == memory.chunks_of_rows(256, 512) == 4
    torch.manual_seed(5)
    model, its_processor = qwen3_vl(processor.tokenizer, **sizes)
    model.save_pretrained(tmp_path / "dense")
    its_processor.save_pretrained(tmp_path / "dense")
    return dataclasses.replace(config, model=portable(str(tmp_path / "dense")), lora_dropout=0.0)


def tuned_model(settings, **changes):
    config = dataclasses.replace(settings, **changes)
    return with_random_updates(base_with_lora(config).train())


def with_random_updates(tuned):
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:  # zero at the start, which would leave lora_A without a gradient
            nn.init.normal_(parameter, std=0.05)
    return tuned


def layers_of(tuned):
    return tuned.base_model.model.model.language_model.layers


@contextlib.contextmanager
def transformers_own(tuned):
    """The layers without their fast forward; what is inside them keeps its own."""
    forwards = [vars(layer).pop("forward") for layer in layers_of(tuned)]
    yield
    for layer, forward in zip(layers_of(tuned), forwards, strict=True):
        layer.forward = forward


def logits_and_gradients(tuned, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    tuned.zero_grad()
    logits = tuned(**inputs).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {
        name: p.grad.clone() for name, p in tuned.named_parameters() if p.grad is not None
    }


def assert_equal(found, wanted):
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
    assert found[1].keys() == wanted[1].keys() and len(found[1]) > 8
    for name, grad in wanted[1].items():
        assert grad.abs().max() > 0
        torch.testing.assert_close(
            found[1][name], grad, rtol=1e-4, atol=1e-5 * max(1, float(grad.abs().max())), msg=name
        )


@pytest.fixture
def batch(settings, challenge):
    encoder = Encoder(load_processor(settings), challenge.folder, settings.image_side)
    return encoder.examples(challenge.train.head(6).to_dict("records"))


@pytest.mark.parametrize("recomputes", [True, False])
def test_equal_to_transformers_own_with_gradients(settings, batch, recomputes):
    tuned = tuned_model(settings, use_gradient_checkpointing=recomputes)
    assert all(
        layer.is_checkpointed is recomputes and not layer.gradient_checkpointing
        for layer in layers_of(tuned)
    )
    with transformers_own(tuned):
        wanted = logits_and_gradients(tuned, batch)
    assert_equal(logits_and_gradients(tuned, batch), wanted)


def test_a_dense_layers_packed_weights_are_kept_once(settings):
    mlp = layers_of(tuned_model(settings))[0].mlp
    if not hasattr(mlp, "packed"):
        return  # experts: tests/model/test_experts.py
    for name, rows in mlp.packed.items():
        weight = getattr(mlp, name).weight
        state = weight.quant_state
        assert rows.packed.weights.data_ptr() == weight.data_ptr()
        assert rows.packed.scale.data_ptr() == state.state2.absmax.data_ptr()
        is_whole = len(state.absmax) % 256 == 0
        assert (rows.packed.absmax.data_ptr() == state.absmax.data_ptr()) == is_whole


def test_without_padding_and_without_gradients_too(settings, batch):
    tuned = tuned_model(settings)
    tokens = {"input_ids": torch.arange(5, 21).view(2, 8)}
    with transformers_own(tuned):
        wanted = logits_and_gradients(tuned, tokens)
    assert_equal(logits_and_gradients(tuned, tokens), wanted)
    with torch.no_grad():
        torch.testing.assert_close(tuned(**tokens).logits, wanted[0], rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_layers_input(settings):
    tuned = tuned_model(settings)
    layer = layers_of(tuned)[1]
    width = layer.input_layernorm.weight.numel()
    torch.manual_seed(1)
    x, angle = (
        torch.randn(2, 7, width, requires_grad=True),
        torch.rand(2, 7, layer.self_attn.head_dim // 2).repeat(1, 1, 2),
    )
    mask = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 1, 7, 7).clone()
    mask[0, :, 2:, :2] = False  # left padding
    inputs = {"attention_mask": mask, "position_embeddings": (angle.cos(), angle.sin())}
    grad = torch.randn(2, 7, width)
    found = torch.autograd.grad(layer(x, **inputs), x, grad)
    with transformers_own(tuned):
        wanted = torch.autograd.grad(layer(x, **inputs), x, grad)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_dropout_is_the_same_when_a_layer_is_recomputed(settings, batch):
    found = []
    for recomputes in (True, False):
        tuned = tuned_model(settings, lora_dropout=DROPOUT, use_gradient_checkpointing=recomputes)
        torch.manual_seed(3)
        found.append(logits_and_gradients(tuned, batch))
    assert_equal(*found)
    torch.manual_seed(4)
    assert not torch.allclose(logits_and_gradients(tuned, batch)[0], found[0][0], atol=1e-4)
    tuned.eval()
    with torch.no_grad():
        assert torch.equal(
            *(tuned(**{k: v for k, v in batch.items() if k != "labels"}).logits for _ in range(2))
        )


@pytest.mark.parametrize("recomputes", [True, False])
def test_with_dropout_equal_to_transformers_own_with_these_masks(
    settings, batch, monkeypatch, recomputes
):
    own = Projection.next_use
    # another mask for q, k and v than for o
    monkeypatch.setattr(
        Projection, "next_use", lambda self: own(self)._replace(seed=7 + len(self.layers))
    )
    tuned = tuned_model(settings, lora_dropout=DROPOUT, use_gradient_checkpointing=recomputes)
    with transformers_own(tuned):
        wanted = logits_and_gradients(tuned, batch)
    assert_equal(logits_and_gradients(tuned, batch), wanted)


def test_kept_tensors_are_gone_once_their_layers_backward_is_done(settings, batch, monkeypatch):
    held, backward = [], fast.Layer.backward

    def watched(self, *args, **kwargs):
        gc.collect()
        held.append(sum(type(one) is fast.SavedAttentionHalf for one in gc.get_objects()))
        return backward(self, *args, **kwargs)

    monkeypatch.setattr(fast.Layer, "backward", watched)
    tuned = tuned_model(settings, use_gradient_checkpointing=False)
    logits_and_gradients(tuned, batch)
    count = len(layers_of(tuned))
    assert held == list(range(count, 0, -1))
    held.clear()
    tuned = tuned_model(settings, use_gradient_checkpointing=True)
    logits_and_gradients(tuned, batch)
    assert held == [1] * count


def test_a_second_backward_is_refused_and_says_why(settings, batch):
    tuned = tuned_model(settings)
    loss = tuned(**{name: value for name, value in batch.items() if name != "labels"}).logits.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second"):
        loss.backward()


def test_evaluation_between_forward_and_backward_changes_no_gradient(settings, batch):
    found = []
    for evaluates in (False, True):
        tuned = tuned_model(settings, lora_dropout=DROPOUT, use_gradient_checkpointing=True)
        torch.manual_seed(3)
        logits = tuned(**{name: value for name, value in batch.items() if name != "labels"}).logits
        tuned.train(not evaluates)
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        found.append(
            (
                logits.detach(),
                {name: p.grad for name, p in tuned.named_parameters() if p.grad is not None},
            )
        )
    assert_equal(*found)


def test_recomputation_stops_before_the_second_half(settings, batch, monkeypatch):
    tuned = tuned_model(settings, use_gradient_checkpointing=True)
    kind = type(layers_of(tuned)[0].second_half)
    made, forward = [], kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda *args, **save: made.append(1) or forward(*args, **save)
    )
    logits_and_gradients(tuned, batch)
    assert len(made) == len(layers_of(tuned))


def test_without_the_adapter_it_is_the_base(settings, batch):
    tuned = tuned_model(settings, lora_dropout=DROPOUT)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    base = base_of(settings)
    with torch.no_grad(), tuned.disable_adapter():
        torch.testing.assert_close(
            tuned(**inputs).logits, base(**inputs).logits, rtol=1e-4, atol=1e-4
        )


def test_a_cache_is_left_to_transformers(settings):
    tuned, tokens = tuned_model(settings).eval(), torch.arange(5, 13)[None]
    with torch.no_grad():
        whole = tuned(input_ids=tokens).logits[:, -1]
        cache = tuned(
            input_ids=tokens[:, :5], use_cache=True, past_key_values=DynamicCache()
        ).past_key_values
        rest = tuned(input_ids=tokens[:, 5:], past_key_values=cache, use_cache=True).logits[:, -1]
    torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-4)


def test_a_fast_layer_replaces_the_hook_that_moves_inputs(settings, batch):
    wanted = logits_and_gradients(tuned_model(settings), batch)
    base, moved = base_of(settings), []
    for layer in base.model.language_model.layers:
        hook = AlignDevicesHook(execution_device="cpu")
        hook.pre_forward = lambda module, *args, **kwargs: moved.append(module) or (args, kwargs)
        add_hook_to_module(layer, hook)
    found = logits_and_gradients(with_random_updates(lora_on(base, settings).train()), batch)
    assert_equal(found, wanted)
    assert not moved


def test_layers_of_one_forward_share_a_copy_of_the_mask_on_another_device():
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    there = torch.device("meta")
    with one_forward():
        copy = fast._on(there, mask)
        assert copy.device == there
        assert fast._on(there, mask) is copy
        assert fast._on(mask.device, mask) is mask
    with one_forward():
        assert fast._on(there, mask) is not copy
    assert fast._on(there, None) is None


def test_other_adapters_and_a_merged_one_are_left_to_transformers(settings, batch):
    some = tuned_model(
        settings, target_modules=("q_proj", "v_proj"), use_gradient_checkpointing=True
    )
    assert all(
        "forward" not in vars(layer) and layer.gradient_checkpointing for layer in layers_of(some)
    )
    assert logits_and_gradients(some, batch)[1]
    tuned = tuned_model(settings).eval()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        before = tuned(**inputs).logits
        tuned.merge_adapter()
        found = tuned(**inputs).logits
        with transformers_own(tuned):
            assert torch.equal(found, tuned(**inputs).logits) and not torch.equal(found, before)

"""fp16 on a model whose residual stream leaves fp16's range: a CPU has the same 65,504 as a T4."""

import dataclasses

import pytest
import torch
from bases import base_of, lora_on
from families import qwen3_5
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, cross_entropy

from vqa_utils.artifacts.paths import DEMO_MODEL
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.fp16 import keep_residual_stream_in_fp32
from vqa_utils.model.loading import load_processor

pytestmark = pytest.mark.slow


def changed_base(folder, change, source=DEMO_MODEL):
    """A copy of a base; `change` returns the tensor of a name of its language model."""
    folder.mkdir()
    for file in [*source.glob("*.json"), *source.glob("*.jinja")]:
        (folder / file.name).write_text(file.read_text())
    tensors = load_file(source / "model.safetensors")
    for name in tensors:
        if "language_model" in name:
            tensors[name] = change(name, tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def scaled_base(folder, scale):
    """The demo's base with what its attention adds to the residual stream scaled up."""
    return changed_base(
        folder, lambda name, tensor: tensor * scale if name.endswith("o_proj.weight") else tensor
    )


def plain_gradient(config, batch, monkeypatch):
    """Without the fp32 residual stream."""
    with monkeypatch.context() as plain:
        plain.setattr("vqa_utils.model.loading.keep_residual_stream_in_fp32", lambda model: None)
        return gradient(base_of(config, torch.float16), config, batch)


def gradient(model, config, batch, loss_scale=2.0**12):
    """All LoRA gradients as one vector, under fp16 autocast unless the model computes in fp32."""
    model = lora_on(model, config).train()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would leave lora_A without a gradient
            torch.nn.init.normal_(parameter, std=0.02)
    batch = dict(batch)
    labels = batch.pop("labels")
    with torch.autocast("cpu", torch.float16, enabled=model.dtype == torch.float16):
        logits = model(**batch).logits[:, 0].float()
        loss = cross_entropy(logits, labels[:, 1 - batch["logits_to_keep"]])
        (loss * loss_scale).backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(grads) / loss_scale


@pytest.fixture
def batch(encoder, challenge):
    return encoder.examples(challenge.train.head(4).to_dict("records"))


def test_stays_finite_where_plain_fp16_overflows(config, batch, tmp_path, monkeypatch):
    for scale in (2.0 ** (quarter / 4) for quarter in range(42, 52)):
        grown = dataclasses.replace(
            config, model=str(scaled_base(tmp_path / f"{scale:g}", scale)), lora_dropout=0.0
        )
        found = plain_gradient(grown, batch, monkeypatch)
        if not found.isfinite().all():
            break
    else:
        pytest.fail("plain fp16 stayed finite at every scale: this tests nothing")
    ours = gradient(base_of(grown, torch.float16), grown, batch)
    exact = gradient(base_of(grown, torch.float32), grown, batch)
    assert ours.isfinite().all()
    assert cosine_similarity(ours, exact, dim=0) > 0.99


def test_linear_attention_stays_finite_too(config, processor, challenge, tmp_path, monkeypatch):
    """Qwen3.5, whose residual stream begins near the end of fp16's range."""
    torch.manual_seed(5)
    model, its_processor = qwen3_5(processor.tokenizer)
    model.save_pretrained(tmp_path / "source")
    its_processor.save_pretrained(tmp_path / "source")

    def changed(name, tensor):
        if name.endswith("embed_tokens.weight"):
            return tensor.sign() * 65_000
        is_added = name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight"))
        return tensor * 1e5 if is_added else tensor

    folder = changed_base(tmp_path / "changed", changed, tmp_path / "source")
    config = dataclasses.replace(config, model=str(folder), lora_dropout=0.0)
    encoder = Encoder(load_processor(config), challenge.folder, config.image_side)
    batch = encoder.examples(challenge.train.head(4).to_dict("records"))
    assert not plain_gradient(config, batch, monkeypatch).isfinite().all(), "else it tests nothing"
    ours = gradient(base_of(config, torch.float16), config, batch)
    exact = gradient(base_of(config, torch.float32), config, batch)
    assert ours.isfinite().all()
    assert cosine_similarity(ours, exact, dim=0) > 0.99


def test_norms_router_and_residual_stream_are_fp32_and_matrices_fp16(config):
    model = base_of(config, torch.float16)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    wide = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert wide == {name for name in dtypes if "norm" in name or ".mlp.gate." in name}
    assert {
        dtypes[name] for name in dtypes.keys() - wide if "visual" in name or "lm_head" in name
    } == {torch.float16}
    seen = {}
    layer = model.model.language_model.layers[0]
    layer.register_forward_pre_hook(lambda m, args: seen.update(stream=args[0].dtype))
    layer.mlp.gate.register_forward_hook(lambda m, args, out: seen.update(router=out[0].dtype))
    layer.self_attn.register_forward_hook(lambda m, args, out: seen.update(branch=out[0].dtype))
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        model(input_ids=torch.tensor([[7, 8, 9]]))
    assert seen["stream"] == seen["router"] == torch.float32


def test_an_fp32_model_is_left_alone(config):
    model = base_of(config, torch.float32)
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    keep_residual_stream_in_fp32(model)
    assert {name: parameter.dtype for name, parameter in model.named_parameters()} == before

"""fp16 on a model whose residual stream leaves fp16's range: a CPU has the same 65,504 as a T4."""

import dataclasses

import pytest
import torch
from bases import base_of, lora_on
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, cross_entropy

from vqa_utils.artifacts.paths import DEMO_MODEL
from vqa_utils.model.fp16 import keep_residual_stream_in_fp32

pytestmark = pytest.mark.slow


def scaled_base(folder, scale):
    """The demo's base with what its attention adds to the residual stream scaled up, as a checkpoint."""
    folder.mkdir()
    for file in DEMO_MODEL.glob("*.json"):
        (folder / file.name).write_text(file.read_text())
    tensors = load_file(DEMO_MODEL / "model.safetensors")
    grown = {name: tensor * scale if "language_model" in name and name.endswith("o_proj.weight") else tensor
             for name, tensor in tensors.items()}  # fmt: skip
    save_file(grown, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def gradient(model, config, batch):
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
        cross_entropy(logits, labels[:, 1 - batch["logits_to_keep"]]).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.fixture
def batch(encoder, challenge):
    return encoder.examples(challenge.train.head(4).to_dict("records"))


def test_stays_finite_where_plain_fp16_overflows(config, batch, tmp_path, monkeypatch):
    for scale in (2.0 ** (quarter / 4) for quarter in range(42, 52)):
        grown = dataclasses.replace(
            config, model=str(scaled_base(tmp_path / f"{scale:g}", scale)), lora_dropout=0.0
        )
        with monkeypatch.context() as plain:
            plain.setattr(
                "vqa_utils.model.loading.keep_residual_stream_in_fp32", lambda model: None
            )
            found = gradient(base_of(grown, torch.float16), grown, batch)
        if not found.isfinite().all():
            break
    else:
        pytest.fail("plain fp16 stayed finite at every scale: this tests nothing")
    ours = gradient(base_of(grown, torch.float16), grown, batch)
    exact = gradient(base_of(grown, torch.float32), grown, batch)
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

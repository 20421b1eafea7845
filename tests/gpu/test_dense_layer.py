"""A dense decoder layer as one node of autograd, in fp16. `python -m pytest -m gpu` where there is a GPU."""

import dataclasses

import pytest
import torch
from bases import base_with_lora
from families import qwen3_vl
from torch import nn

from vqa_utils.artifacts.places import portable
from vqa_utils.model.encoder import Encoder
from vqa_utils.model.loading import load_processor
from vqa_utils.planning import memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(params=[memory.DENSE_AT_ONCE, 2**15], ids=["whole", "in chunks"])
def settings(request, config, processor, tmp_path, monkeypatch):
    """Settings of a dense model with the heads that the kernels know."""
    monkeypatch.setattr(memory, "DENSE_AT_ONCE", request.param)
    torch.manual_seed(5)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    model, its_processor = qwen3_vl(processor.tokenizer, **sizes)
    model.save_pretrained(tmp_path / "dense")
    its_processor.save_pretrained(tmp_path / "dense")
    return dataclasses.replace(
        config, model=portable(str(tmp_path / "dense")), lora_dropout=0.0, max_memory=("10GB",)
    )


def logits_and_gradients(tuned, batch):
    tuned.zero_grad()
    with torch.autocast("cuda", torch.float16):
        logits = tuned(**batch).logits.float()
    (logits * torch.linspace(-1, 1, logits.numel(), device="cuda").view_as(logits)).sum().backward()
    grads = {name: p.grad.clone() for name, p in tuned.named_parameters() if p.grad is not None}
    return logits.detach(), grads


@pytest.mark.parametrize("recomputes", [True, False])
def test_equal_to_transformers_own_but_for_rounding(settings, challenge, recomputes):
    tuned = base_with_lora(
        dataclasses.replace(settings, use_gradient_checkpointing=recomputes)
    ).train()
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    encoder = Encoder(load_processor(settings), challenge.folder, settings.image_side)
    batch = encoder.examples(challenge.train.head(6).to_dict("records")).to("cuda")
    batch.pop("labels")
    found = logits_and_gradients(tuned, batch)
    for layer in tuned.base_model.model.model.language_model.layers:
        del layer.forward  # what is inside it keeps its own
    wanted = logits_and_gradients(tuned, batch)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-2, atol=1e-2)
    assert found[1].keys() == wanted[1].keys() and len(found[1]) == 2 * 2 * 4
    for name, grad in wanted[1].items():
        assert (found[1][name] - grad).norm() < 2e-2 * grad.norm(), name

import dataclasses

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn

from vqa_utils.model.loading import load_base
from vqa_utils.model.loading_check import LoadError, check_loaded, loaded_weights
from vqa_utils.model.nf4 import quantizer as quantize
from vqa_utils.planning.shapes import GROUPS


def test_the_table_has_what_was_planned(config, base):
    table = loaded_weights(base, config).set_index("weights")
    assert list(table.index) == [group for group in GROUPS if group != "mlp"] and set(
        table["on"]
    ) == {"cpu"}
    assert table.loc[["experts", "attention"], "kept as"].tolist() == ["NF4", "NF4"]
    assert table.loc[["vision", "head", "embeddings"], "kept as"].unique().tolist() == [
        "float32"
    ]  # a CPU has no fp16
    assert (table["loaded GiB"] - table["planned GiB"]).abs().max() < 0.001
    fp16 = load_base(config, torch.float16)
    table = loaded_weights(fp16, config).set_index("weights")
    assert table.loc["vision", "kept as"] == "float16 + float32"  # its norms
    assert table.loc["norms and router", "kept as"] == "float32"


def test_experts_that_stay_in_16_bits_are_an_error(config, monkeypatch):
    monkeypatch.setattr(
        quantize, "_is_fused_experts", lambda module: False
    )  # what bitsandbytes' own config does
    with pytest.raises(LoadError) as error:
        load_base(config)
    lines = str(error.value).splitlines()
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    assert lines[1] == f"  - {name}: expected 4 bits, found float32 (0.00 GB)"
    assert lines[-1] == "  - and 4 more"  # eight tensors and the group


def test_an_attention_in_16_bits_and_a_device_that_is_not_the_plans(config):
    model = load_base(config)
    layer = model.model.language_model.layers[1].self_attn
    assert isinstance(layer.q_proj, Linear4bit)
    layer.q_proj = nn.Linear(256, 256, bias=False)
    with pytest.raises(
        LoadError, match=r"layers\.1\.self_attn\.q_proj\.weight: expected 4 bits, found float32"
    ):
        check_loaded(model, config)
    model = load_base(config)
    model.hf_device_map = {"model.visual": "cpu", "model.language_model": 1, "lm_head": "cpu"}
    with pytest.raises(
        LoadError, match=r"embed_tokens\.weight: expected it on cuda:1, found it on cpu"
    ):
        check_loaded(model, config)


def test_a_group_of_another_size_is_an_error(config):
    model = load_base(config)
    model.lm_head = nn.Linear(256, 640 * 8, bias=False)
    with pytest.raises(LoadError, match=r"head: expected 0\.\d+ GiB, found 0\.\d+ GiB"):
        check_loaded(model, dataclasses.replace(config, model="demo"))
